// Alerts on promforest's scores and on promforest itself. They expect that Prometheus scrapes promforest with honor_labels.
//
// The labels of a group are those that its detector has in `by`: no text of a rule that applies to every detector names one.
{
  local config = $._config,

  // A selector of the detectors that raise alerts.
  local of(metric, matchers='') =
    local all = std.join(', ', std.filter(function(text) text != '', [config.detectorSelector, matchers]));
    if all == '' then metric else '%s{%s}' % [metric, all],

  // An alert of a group or a job has these labels, and its detector.
  local eachLabel(text) =
    '{{ range $label, $value := $labels }}{{ if not (eq $label "__name__" "detector") }}' + text + '{{ end }}{{ end }}',
  local subject = '{{ $labels.detector }}' + eachLabel(', {{ $label }} {{ $value }}'),
  local matchers = '{{ $of := printf "detector=%q" $labels.detector }}'
                   + eachLabel('{{ $of = printf "%s, %s=%q" $of $label $value }}'),

  local groupDashboard(uid) =
    '/d/' + uid + '/?var-detector={{ $labels.detector }}'
    + eachLabel('{{ if eq $label "job" "instance" }}&var-{{ $label }}={{ urlquery $value }}'
                + '{{ else }}&var-filters={{ $label }}%7C%3D%7C{{ urlquery $value }}{{ end }}'),
  local instanceDashboard = '/d/' + config.dashboards.group + '/?var-job={{ urlquery $labels.job }}&var-instance={{ urlquery $labels.instance }}',
  local ownDashboard = '/d/' + config.dashboards.itself + '/',

  local lines(text) = std.join(' ', std.split(std.rstripChars(text, '\n'), '\n')),

  local alert(name, severity, expr, annotations) = {
    alert: name,
    expr: expr,
    labels: { severity: severity },
    annotations: {
      summary: annotations.summary,
      description: lines(annotations.description),
      action: lines(annotations.action),
      dashboard: annotations.dashboard,
      runbook_url: config.runbookUrl + '#' + std.asciiLower(name),
    },
  },

  // An incident opens when the score passes anomaly_threshold and stays open for as long as the deviation lasts, three
  // hours at most, so an outage is one alert. keep_firing_for bridges a scrape that fails.
  //
  // A model of the kind isolation_forest has no incidents, and its score no budget: a single scrape of heavy traffic
  // lifts rate(...[1m]), and so the score, for one minute. There, three quarters of two minutes above 1 raise the alert;
  // count_over_time suppresses the alert while there are too few scores. model="" leaves the challenger out.
  //
  // Groups of a job that share a cause are one alert, AnomalyJobIncident; `for` lets the job's incident open before the
  // first group is reported on its own. A matching that ignores the one label that groups of a job differ in holds for
  // whatever labels the job has, and never for a group of another job.
  local anomalies = [
    alert(
      'AnomalyIncident',
      'warning',
      |||
        (
          %(incident)s == 1
          or
          (
            quantile_over_time(0.25, %(score)s[2m]) > 1
            and
            count_over_time(%(score)s[2m]) >= 4
            unless
            anomaly_incident
          )
        )
      ||| % { incident: of('anomaly_incident'), score: of('anomaly_score', 'model=""') }
      + std.join('', [
        // Of several sidecars, each writes the incident of a job with its shard.
        'unless ignoring (%s) (anomaly_job_incident == 1)\n' % std.join(', ', labels + ['promforest_shard'])
        for labels in config.groupLabels
      ]),
      {
        summary: 'Anomaly: ' + subject,
        description: |||
          The metrics of %(subject)s do not look like their history
          {{- %(matchers)s
          {{- with query (printf "topk(1, anomaly_contribution{%%s})" $of) }}{{ with first . }}:
          {{ $feature := "" -}}
          {{ range $label, $value := .Labels -}}
          {{ if not (or (eq $label "__name__" "detector" "metric" "reason") (index $labels $label)) -}}
          {{ $feature = printf "%%s, %%s=%%q" $feature $label $value }}{{ end }}{{ end -}}
          {{ .Labels.metric }}{{ with $feature }}{{ "{" }}{{ slice . 2 }}}{{ end }}
          {{ if ne .Labels.reason "jumped" }}is {{ end }}{{ reReplaceAll "_" " " .Labels.reason -}}
          {{ $cause := printf "%%s, metric=%%q%%s" $of .Labels.metric $feature -}}
          {{ with query (printf "anomaly_expected_lower{%%s}" $cause) }}, usual are
          {{ . | first | value | humanize }}{{ end -}}
          {{ with query (printf "anomaly_expected_upper{%%s}" $cause) }} to {{ . | first | value | humanize }}{{ end -}}
          {{ end }}{{ end }}.
        ||| % { subject: subject, matchers: std.lstripChars(matchers, '{ ') },
        action: 'Look at the panel of the feature that left its usual range, then at what runs there.',
        dashboard: groupDashboard(config.dashboards.group),
      },
    ) + { 'for': config.incidentFor, keep_firing_for: '2m' },

    // At least three groups, and 30 % of a job's, opened an incident within 15 minutes.
    alert(
      'AnomalyJobIncident',
      'warning',
      'max without (promforest_shard) (' + of('anomaly_job_incident') + ') == 1',
      {
        summary: 'Anomaly in many groups: ' + subject,
        description: |||
          {{ %(matchers)s
          {{- with query (printf "count(anomaly_incident{%%s} == 1)" $of) }}{{ . | first | value }}{{ else }}Many{{ end }} groups
          of %(subject)s are in an incident, and many of them opened it within 15 minutes
          {{- with query (printf "topk(1, sum by (metric) (anomaly_contribution{%%s}))" $of) }}:
          {{ with first . }}{{ .Labels.metric }} deviates most{{ end }}{{ end }}.
        ||| % { subject: subject, matchers: std.lstripChars(matchers, '{ ') },
        action: 'Look for what the groups have in common, such as a deployment, a network or a service that all of them use.',
        dashboard: groupDashboard(config.dashboards.fleet),
      },
    ) + { keep_firing_for: '2m' },
  ],

  // Missing series have no score. InterfaceGone and CounterFrozen are about node_exporter's interfaces; the first lasts for
  // ten minutes, then the new state is normal.
  local silence = [
    alert(
      'InterfaceGone',
      'warning',
      |||
        node_network_receive_bytes_total{%(device)s} offset 10m
        unless
        node_network_receive_bytes_total
        and on (job, instance)
        up == 1
      ||| % { device: config.deviceSelector },
      {
        summary: 'Network interface {{ $labels.device }} of {{ $labels.instance }} is gone',
        description: |||
          {{ $labels.instance }} ({{ $labels.job }}) is up and had the interface {{ $labels.device }} until recently. Its
          other interfaces are scored without it within a minute.
        |||,
        action: "Look at the host's log. If the interface is not meant to come back there is nothing to do.",
        dashboard: instanceDashboard,
      },
    ),

    alert(
      'ScoredTargetDown',
      'critical',
      'up == 0 and on (job, instance) count_over_time(%s[6h])' % of('anomaly_score', 'model=""'),
      {
        summary: '{{ $labels.instance }} is down',
        description: |||
          Prometheus has not been able to scrape {{ $labels.instance }} ({{ $labels.job }}) for two minutes; it was scored
          within the last six hours.
        |||,
        action: 'Look whether the host answers, then at its exporter.',
        dashboard: instanceDashboard,
      },
    ) + { 'for': config.targetDownFor },

    // Only for interfaces that had packets in every quarter of an hour of the day before.
    alert(
      'CounterFrozen',
      'warning',
      |||
        changes(node_network_receive_packets_total{%(device)s}[15m]) == 0
        and
        min_over_time(changes(node_network_receive_packets_total[15m])[1d:15m] offset 15m) > 0
        and
        count_over_time(node_network_receive_packets_total[1d:15m] offset 15m) > 48
      ||| % { device: config.deviceSelector },
      {
        summary: 'No packets on {{ $labels.device }} of {{ $labels.instance }}',
        description: |||
          {{ $labels.device }} of {{ $labels.instance }} ({{ $labels.job }}) received packets in every quarter of an hour of the
          day before, and has received none for fifteen minutes.
        |||,
        action: 'Look whether the link is up, and whether the exporter still reads its counters.',
        dashboard: instanceDashboard,
      },
    ),
  ],

  // Whether promforest does its job.
  local health = [
    alert(
      'PromforestDown',
      'critical',
      'up{%(promforest)s} == 0 or absent(up{%(promforest)s})' % { promforest: config.promforestSelector },
      {
        summary: 'promforest is down',
        description: 'Prometheus has not been able to scrape promforest for two minutes. Nothing is scored meanwhile.',
        action: "Look at promforest's log. Prometheus keeps the samples, so nothing is lost by a restart.",
        dashboard: ownDashboard,
      },
    ) + { 'for': config.promforestDownFor },

    // Only for targets that had scores within six hours: a new one is silent until its first model is trained. Whether a
    // group without job and instance is still there cannot be told.
    alert(
      'ScoresStopped',
      'critical',
      |||
        (
          count_over_time(%(score)s[6h])
          unless
          count_over_time(%(score)s[2m])
        )
        and on (job, instance)
        (up == 1 and up offset 5m == 1)
      ||| % { score: of('anomaly_score', 'model=""') },
      {
        summary: 'No more scores: ' + subject,
        description: |||
          The target of %s is up and was scored until recently; for five minutes no score has arrived.
        ||| % subject,
        action: |||
          In the dashboard, see whether rows turned incomplete (a feature is missing), requests stopped coming in, or writing
          the scores back fails.
        |||,
        dashboard: groupDashboard(config.dashboards.group),
      },
    ) + { 'for': config.scoresStoppedFor },

    // The short ranges let the restart of a Prometheus pass: its retries are over well before `for`.
    alert(
      'ScoresNotAcknowledged',
      'warning',
      |||
        sum by (job, instance) (increase(promforest_remote_write_samples_failed_total[2m])) > 0
        or
        sum by (job, instance) (increase(promforest_remote_write_retries_total[2m])) > 2
      |||,
      {
        summary: "Prometheus does not take promforest's scores",
        description: |||
          For five minutes promforest at {{ $labels.instance }} has been losing or retrying the scores that it writes back.
        |||,
        action: |||
          Check that Prometheus runs with --web.enable-remote-write-receiver and that the remote_write URL and credentials in
          promforest's configuration are right. Its log has Prometheus' answer.
        |||,
        dashboard: ownDashboard,
      },
    ) + { 'for': config.scoresNotAcknowledgedFor },

    // promforest trains a new model without a feature that stays away. This alert fires if a group stays without scores.
    alert(
      'FeaturesMissing',
      'warning',
      of('promforest_missing_features') + ' > 0',
      {
        summary: 'Series missing: ' + subject,
        description: |||
          {{ $value }} of the series that the model of %s was trained on have been missing for 15 minutes; rows cannot be scored
          without them.
        ||| % subject,
        action: 'Compare the series of the group with those of a day ago.',
        dashboard: groupDashboard(config.dashboards.group),
      },
    ) + { 'for': config.featuresMissingFor },

    alert(
      'TrainingNotFinished',
      'warning',
      of('promforest_training_progress_ratio') + ' < 1',
      {
        summary: 'No model: ' + subject,
        description: |||
          After six hours there is {{ $value | humanizePercentage }} of the history that the first model of %s needs.
        ||| % subject,
        action: "A target that is up now and then never gets there. Otherwise look for training errors in promforest's log.",
        dashboard: groupDashboard(config.dashboards.group),
      },
    ) + { 'for': config.trainingNotFinishedFor },

    alert(
      'PromforestConfigNotReloaded',
      'warning',
      'promforest_config_last_reload_successful == 0',
      {
        summary: 'promforest runs with an old configuration',
        description: |||
          The last reload of promforest at {{ $labels.instance }} failed; the configuration before it is still in use.
        |||,
        action: 'Run `promforest check config FILE`; it names every mistake with its line.',
        dashboard: ownDashboard,
      },
    ) + { 'for': '5m' },

    alert(
      'ModelRegistryDown',
      'warning',
      'promforest_model_registry_up == 0',
      {
        summary: "promforest's model registry does not answer",
        description: |||
          For 15 minutes promforest at {{ $labels.instance }} has not reached its model registry. What serves goes on, but
          nothing is promoted, rolled back or renewed meanwhile.
        |||,
        action: "promforest's log has the registry's answer. With MLflow, look whether its server runs and lets promforest in.",
        dashboard: ownDashboard,
      },
    ) + { 'for': config.registryDownFor },

    alert(
      'ModelGated',
      'info',
      'sum by (job, instance, detector) (increase(promforest_training_runs_total{outcome="gated"}[1h])) > 0',
      {
        summary: 'A renewed model of {{ $labels.detector }} stays out of service',
        description: |||
          promforest at {{ $labels.instance }} has trained a model that does not meet the bounds of training.gate. It is
          registered, and the one before it goes on serving.
        |||,
        action: |||
          `promforest models list` says why, the report in its folder shows it. A lasting change of the data needs new bounds,
          or `promforest models promote`.
        |||,
        dashboard: ownDashboard,
      },
    ),
  ],

  prometheusAlerts+:: {
    groups+: [
      { name: 'promforest-anomalies', rules: anomalies },
      { name: 'promforest-silence', rules: silence },
      { name: 'promforest-health', rules: health },
    ],
  },
}
