//! A job of ten targets with one cause beside real Prometheus servers: one alert for the job, none for its hosts.

mod support;

use std::time::Duration;
use support::hosts::{Hosts, JOB_OF_FILE};
use support::stack::{
    Collectors, JOB_NODE, NODE_NETWORK_EXTENDED, RemoteWriteReceiver, SHORT_TIMEOUT, Scraping, Stack,
    StackApi,
};
use support::{each_version, now_ms};

const HOSTS: [&str; 10] = ["web0", "web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8", "web9"];

/// The newest value of the job's series.
fn job_incident(at: &StackApi) -> Result<f64, String> {
    let series = at.stored(r#"anomaly_job_incident{detector="node_network", job="node"}"#)?;
    series.samples.last().map(|sample| sample.1).ok_or_else(|| "no sample".into())
}

/// The times since `since_ms` at which an alert fired, on any host.
fn firing(at: &StackApi, alert: &str, since_ms: i64) -> Result<Vec<i64>, String> {
    let series =
        at.prometheus.query(&format!(r#"ALERTS{{alertname="{alert}", alertstate="firing"}}[10m]"#))?;
    let times = series.iter().flat_map(|series| series.timestamps());
    Ok(times.filter(|time| *time >= since_ms).collect())
}

#[test]
fn ten_hosts_with_one_cause_are_one_alert() {
    each_version(|version| {
        let hosts = Hosts::start();
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { jobs: JOB_OF_FILE, ..JOB_NODE });
        hosts.write_targets(&stack, &HOSTS);
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK_EXTENDED);
        stack.start_promforest();
        stack.wait("a model of each host", Duration::from_secs(300), |at| {
            let models = HOSTS.iter().filter(|host| {
                at.metric("promforest_model_info", &[("instance", host), ("alias", "champion")]).is_ok()
            });
            match models.count() {
                10 => Ok(()),
                n => Err(format!("{n} models")),
            }
        });
        stack.wait("no incident of the job", Duration::from_secs(90), |at| match job_incident(at)? {
            0.0 => Ok(()),
            value => Err(value.to_string()),
        });
        hosts.set_factor(&HOSTS, 30.0);
        let burst_ms = now_ms();
        stack.wait("an incident of the job", Duration::from_secs(120), |at| match job_incident(at)? {
            1.0 => Ok(()),
            value => Err(value.to_string()),
        });
        stack.wait("an alert for the job", SHORT_TIMEOUT, |at| {
            firing(at, "AnomalyJobIncident", burst_ms)?.first().map(drop).ok_or_else(|| "not yet".into())
        });
        // Longer than the alert of a host waits.
        stack.wait("a minute more", Duration::from_secs(120), |at| {
            let times = firing(at, "AnomalyJobIncident", burst_ms)?;
            let fired_ms = times.iter().max().zip(times.iter().min()).map_or(0, |(last, first)| last - first);
            if fired_ms >= 75_000 { Ok(()) } else { Err(format!("it has fired for {fired_ms} ms")) }
        });
        let open = stack.api.prometheus.query("count(anomaly_incident == 1)").expect("an answer");
        println!("{version}: hosts in an incident: {open:?}");
        let of_hosts = firing(&stack.api, "AnomalyIncident", burst_ms + 5_000).expect("an answer");
        assert!(of_hosts.is_empty(), "{version}: alerts of hosts at {of_hosts:?}, {burst_ms}");
        stack.check_nothing_lost();
    });
}
