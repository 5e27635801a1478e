//! The web pages in a real browser, beside a real Prometheus that holds a day of history: a usual range is known after
//! a full day.

mod support;

use promforest::http::{parse_query, percent_encode};
use promforest::report::text::number;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;
use std::{env, fs};
use support::{Process, PrometheusVersion, chromium, free_port, http, now_ms, wait};

const STEP_MS: i64 = 15_000;
const HISTORY_MS: i64 = 26 * 3_600_000;
const DEVICES: [&str; 2] = ["eth0", "eth1"];

/// Counters of two devices since the beginning of the history.
#[derive(Clone)]
struct Counters {
    begin_ms: i64,
    /// Beginning of a burst on `eth0`.
    burst_ms: Arc<AtomicI64>,
}

impl Counters {
    fn value(&self, device: usize, at_ms: i64) -> f64 {
        let seconds = (at_ms - self.begin_ms) as f64 / 1000.0;
        let step = (at_ms / STEP_MS) as u64 * 2 + device as u64;
        let noise = (step.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1 << 24) as f64;
        let burst_ms = (at_ms - self.burst_ms.load(Ordering::Relaxed)).max(0);
        let burst = if device == 0 { burst_ms as f64 / 1000.0 * 5e6 } else { 0.0 };
        1e5 * seconds + 3e5 * noise + burst
    }

    /// The page of an exporter.
    fn page(&self) -> String {
        let line = |(device, name): (usize, &&str)| {
            let value = self.value(device, now_ms());
            format!("node_network_receive_bytes_total{{device=\"{name}\"}} {value}\n")
        };
        DEVICES.iter().enumerate().map(line).collect()
    }

    /// The samples of the history as OpenMetrics.
    fn history(&self, instance: &str) -> String {
        let mut text = String::from("# TYPE node_network_receive_bytes counter\n");
        for (device, name) in DEVICES.iter().enumerate() {
            for at_ms in (self.begin_ms..self.begin_ms + HISTORY_MS).step_by(STEP_MS as usize) {
                let labels = format!("device=\"{name}\",instance=\"{instance}\",job=\"node\"");
                let (value, seconds) = (self.value(device, at_ms), at_ms as f64 / 1000.0);
                writeln!(text, "node_network_receive_bytes_total{{{labels}}} {value} {seconds}")
                    .expect("text");
            }
        }
        text + "# EOF\n"
    }

    /// Serves the page at this port until the process ends.
    fn serve(&self, port: u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        let counters = self.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let page = counters.page();
                let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n";
                let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
            }
        });
    }
}

/// Takes pictures of a page into the folder `PAGES_SCREENSHOTS`, if it is set: at both widths, in light and dark.
fn take_pictures(url: &str, name: &str, dir: &Path) {
    let Some(folder) = env::var_os("PAGES_SCREENSHOTS") else { return };
    for (width, scheme, number) in
        [(700, "light", 1), (1400, "light", 1), (700, "dark", 0), (1400, "dark", 0)]
    {
        let file = Path::new(&folder).join(format!("{name}-{width}-{scheme}.png"));
        let mut browser = browser(dir);
        browser.arg(format!("--blink-settings=preferredColorScheme={number}"));
        browser.arg(format!("--window-size={width},1800")).arg("--hide-scrollbars");
        browser.arg(format!("--screenshot={}", file.display())).arg(url);
        assert!(browser.output().expect("chromium runs").status.success(), "{}", file.display());
    }
}

fn browser(dir: &Path) -> Command {
    let mut browser = Command::new(chromium());
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--enable-logging=stderr",
    ]);
    browser.arg(format!("--user-data-dir={}", dir.join("chromium").display()));
    browser
}

/// The document that the browser shows. Fails if the page breaks its own policy.
fn browse(url: &str, dir: &Path) -> String {
    let output = browser(dir).args(["--dump-dom", url]).output().expect("chromium runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("Refused to") && !log.contains("Content Security Policy"), "{log}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn api(address: &str, path: &str) -> Result<Value, String> {
    let response = http::get(address, path).map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_str(&response.body).map_err(|error| error.to_string())?;
    if value["status"] == "success" { Ok(value["data"].clone()) } else { Err(response.body) }
}

#[test]
fn in_a_burst_the_browser_shows_host_device_value_and_band() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path();
    let [exporter, prometheus_port, promforest_port] = [free_port(), free_port(), free_port()];
    let instance = format!("127.0.0.1:{exporter}");
    let (prometheus_address, promforest_address) =
        (format!("127.0.0.1:{prometheus_port}"), format!("127.0.0.1:{promforest_port}"));
    let counters =
        Counters { begin_ms: now_ms() - HISTORY_MS - STEP_MS, burst_ms: Arc::new(AtomicI64::new(i64::MAX)) };
    counters.serve(exporter);
    fs::write(path.join("metrics.txt"), counters.history(&instance)).expect("written");
    let program = PrometheusVersion::V3.prometheus();
    let mut promtool = Command::new(program.with_file_name("promtool"));
    promtool.args(["tsdb", "create-blocks-from", "openmetrics", "metrics.txt", "data"]);
    let blocks = promtool.current_dir(path).output().expect("promtool runs");
    assert!(blocks.status.success(), "{}", String::from_utf8_lossy(&blocks.stderr));
    let scraping = format!(
        "global: {{scrape_interval: 15s}}\n\
         scrape_configs: [{{job_name: node, static_configs: [{{targets: ['{instance}']}}]}}]\n\
         remote_write: [{{url: 'http://{promforest_address}/api/v1/write', queue_config: {{batch_send_deadline: 1s}}}}]\n"
    );
    fs::write(path.join("prometheus.yml"), scraping).expect("written");
    let config = format!(
        "remote_write: [{{url: 'http://{prometheus_address}/api/v1/write', basic_auth: {{username: me, password: hunter2}}}}]\n\
         remote_read: [{{url: 'http://{prometheus_address}/api/v1/read'}}]\n\
         detectors: [{{name: traffic, match: [node_network_receive_bytes_total], training: {{history: 2d, min_history: 1h}}}}]\n"
    );
    fs::write(path.join("promforest.yml"), config).expect("written");
    let args = [
        "--config.file=prometheus.yml".into(),
        "--storage.tsdb.path=data".into(),
        "--web.enable-remote-write-receiver".into(),
        format!("--web.listen-address={prometheus_address}"),
    ];
    let mut prometheus = Process::start("prometheus", &program, &args, path);
    let args = [
        "--config.file=promforest.yml".into(),
        format!("--web.listen-address={promforest_address}"),
        "--web.enable-admin-api".into(),
    ];
    let mut promforest = Process::start("promforest", Path::new(support::PROGRAM), &args, path);
    let mut processes = [&mut prometheus, &mut promforest];

    wait("the group is scored", Duration::from_secs(240), &mut processes, || {
        let groups = api(&promforest_address, "/api/v1/groups")?;
        if groups["groups"][0]["state"] == "scored" { Ok(()) } else { Err(groups.to_string()) }
    });
    let url = format!("http://{promforest_address}/");
    assert!(browse(&url, path).contains("1</b> of 1 group scored"));
    take_pictures(&url, "calm", path);

    counters.burst_ms.store(now_ms(), Ordering::Relaxed);
    let burst = |incidents: &Value| {
        let features = incidents["incidents"][0]["features"].as_array()?;
        let is_burst = |feature: &&Value| {
            let [value, upper] = ["value", "expectedUpper"].map(|key| feature[key].as_f64());
            value.zip(upper).is_some_and(|(value, upper)| value > 2.0 * upper)
        };
        features.iter().find(is_burst).cloned()
    };
    let (incidents, feature) =
        wait("an incident of the burst", Duration::from_secs(90), &mut processes, || {
            let incidents = api(&promforest_address, "/api/v1/incidents")?;
            burst(&incidents).map(|feature| (incidents.clone(), feature)).ok_or(incidents.to_string())
        });
    let incident = &incidents["incidents"][0];
    assert_eq!(incident["labels"]["instance"], *instance);
    assert!(feature["feature"].as_str().is_some_and(|name| name.contains("eth0")), "{feature}");

    let page = browse(&url, path);
    assert!(page.contains("<h1>1 open incident</h1>"), "{page}");
    for text in [instance.as_str(), "device=\"eth0\""] {
        assert!(page.contains(text), "{text}: {page}");
    }
    // A row may have come before the browser asked.
    let after = api(&promforest_address, "/api/v1/incidents").expect("incidents");
    let is_shown = |feature: &Value| {
        let [value, lower, upper] = ["value", "expectedLower", "expectedUpper"]
            .map(|key| number(feature[key].as_f64().unwrap_or(f64::NAN)));
        page.contains(&format!("<b>{value}</b>")) && page.contains(&format!("{lower} to {upper}"))
    };
    let later = after["incidents"][0]["features"].as_array().expect("features");
    assert!(is_shown(&feature) || later.iter().any(is_shown), "{incidents} or {after}: {page}");
    let group = incident["page"].as_str().expect("a path");
    let group_page = browse(&format!("{url}{group}"), path);
    for text in ["Open incident", "device=\"eth0\"", "class=\"expected\"", "<h2>Models</h2>"] {
        assert!(group_page.contains(text), "{text}: {group_page}");
    }
    take_pictures(&url, "incident", path);
    take_pictures(&format!("{url}{group}"), "group", path);
    check_feedback(&promforest_address, &group_page, group, path);
    let shown = http::get(&promforest_address, "/config").expect("a page").body;
    assert!(shown.contains("username: me") && !shown.contains("hunter2"), "{shown}");
    let flags = api(&promforest_address, "/api/v1/status/flags").expect("flags");
    assert_eq!(flags["config.file"], "promforest.yml");
}

/// The fields of the first form for feedback on a page, and a kind of feedback.
fn form(page: &str, feedback: &str) -> String {
    let form = &page[page.find("<form class=\"feedback\"").expect("a form")..];
    let field = |name: &str| {
        let (_, rest) = form.split_once(&format!("name=\"{name}\" value=\"")).expect("a field");
        let value = rest.split('"').next().unwrap_or_default().replace("&quot;", "\"").replace("&amp;", "&");
        format!("{name}={}", percent_encode(&value))
    };
    format!("{}&{}&{}&feedback={feedback}", field("detector"), field("group"), field("at"))
}

/// The buttons work for the page itself, and for no page of another site.
fn check_feedback(address: &str, page: &str, group: &str, dir: &Path) {
    let real = form(page, "real");
    for headers in
        ["", "Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"]
    {
        let answer = http::post_form(address, "/feedback", headers, &real).expect("an answer");
        assert_eq!(answer.status, 403, "{headers}: {}", answer.body);
    }
    let (fields, target) = (real.replace("&feedback=real", ""), format!("http://{address}/feedback"));
    let inputs = fields.split('&').filter_map(|field| field.split_once('=')).map(|(name, value)| {
        let value = parse_query(&format!("v={value}")).remove(0).1.replace('"', "&quot;");
        format!("<input name=\"{name}\" value=\"{value}\">")
    });
    let inputs: String = inputs.collect();
    let other_site = dir.join("other.html");
    let form =
        format!("<form method=post action=\"{target}\">{inputs}<input name=feedback value=real></form>");
    fs::write(&other_site, format!("{form}<script>document.forms[0].submit()</script>")).expect("written");
    let shown = browse(&format!("file://{}", other_site.display()), dir);
    assert!(shown.contains("No feedback was recorded"), "{shown}");

    let answer = |feedback: &str| {
        let own = format!("Origin: http://{address}\r\n");
        let form = self::form(page, feedback);
        http::post_form(address, "/feedback", &own, &form).expect("an answer")
    };
    let answered = answer("real");
    assert_eq!((answered.status, &*answered.headers["location"]), (303, &*format!("{group}#incidents")));
    assert_eq!(api(address, "/api/v1/incidents").expect("incidents")["incidents"][0]["feedback"], "real");
    assert!(browse(&format!("http://{address}/{group}"), dir).contains("<b>real</b>"));
    assert_eq!(answer("false").status, 303);
    assert_eq!(answer("neither").status, 400);
    assert_eq!(http::post_form(address, "/feedback", "", "").expect("an answer").status, 403);
    assert!(browse(&format!("http://{address}/{group}"), dir).contains("<b>false alarm</b>"));
}
