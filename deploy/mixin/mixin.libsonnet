// Alert rules and dashboards of promforest as a monitoring mixin. README.md says how to use it.
(import 'alerts.libsonnet') +
(import 'dashboards.libsonnet') +
{
  _config+:: {
    // The scrape of promforest itself.
    promforestSelector: 'job="promforest"',
    // The detectors whose incidents and scores raise alerts, such as 'detector!~"test_.*"'; '' are all of them.
    detectorSelector: '',
    // A job's incident replaces those of its groups. The labels that `by` of a detector has and `job_by` has not, one
    // list for each kind of detector. Groups that differ in other labels raise their own alerts all the same.
    groupLabels: [['instance'], ['pod'], ['node'], ['container'], ['service'], ['device']],
    // node_exporter's interfaces that InterfaceGone and CounterFrozen watch.
    deviceSelector: 'device!~"veth.*|cali.*|tap.*"',

    // The document with a heading for each alert; the name of the alert in lower case is appended as its anchor.
    runbookUrl: 'file:///usr/share/doc/promforest/alerts.md',

    // `for` and thresholds.
    incidentFor: '1m',
    targetDownFor: '2m',
    promforestDownFor: '2m',
    scoresStoppedFor: '3m',
    scoresNotAcknowledgedFor: '5m',
    featuresMissingFor: '15m',
    // Meant for the default training.min_history of 1h; raise it with that.
    trainingNotFinishedFor: '6h',
    registryDownFor: '15m',

    dashboards: {
      fleet: 'promforest-fleet',
      group: 'promforest-group',
      itself: 'promforest-self',
    },
    dashboardTags: ['promforest'],
    dashboardRefresh: '30s',
  },
}
