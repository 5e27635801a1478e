//! Texts of users: configuration and selectors.

use promforest::config::Config;
use promforest::http::web_config::WebConfig;
use promforest::prom::{Labels, METRIC_NAME, Selector};
use promforest::yaml::FileError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, process};

/// A configuration is read, or every error has a line of text.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Err(errors) = Config::parse(text) {
        assert!(!errors.is_empty());
        assert!(errors.iter().all(|error| !error.to_string().is_empty()));
    }
}

/// So is a web configuration, which is a file: the paths in it begin at its folder.
pub fn web_config(data: &[u8]) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = env::temp_dir().join(format!("promforest-fuzz-{}-{number}.yml", process::id()));
    fs::write(&path, data).expect("the folder is writable");
    let read = WebConfig::load(&path);
    fs::remove_file(&path).expect("the file was written");
    match read {
        Ok(_) => assert!(str::from_utf8(data).is_ok()),
        Err(FileError::Io { source, .. }) => assert!(str::from_utf8(data).is_err(), "{source}"),
        Err(FileError::Invalid { errors, .. }) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| !error.to_string().is_empty()));
        }
    }
}

/// A selector selects, and refuses to select everything; its opposite selects the opposite. The first byte cuts the rest
/// into a selector and the value of a label that it looks at.
pub fn selector(data: &[u8]) {
    let Some((cut, text)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let cut = (0..=usize::from(*cut).min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    let (value, text) = text.split_at(cut.expect("0 is a boundary"));
    let labels = Labels::new([(METRIC_NAME, "up"), ("a", value)]).expect("the label names differ");
    if let Ok(selector) = Selector::parse(text) {
        let _ = selector.matches(&labels);
        // Prometheus gets the same matchers.
        assert!(!selector.matchers().is_empty());
        if let Some(only) = selector.to_labels() {
            assert!(selector.matches(&only), "{text}");
        }
    }
    // The rest as a pattern.
    if text.contains('`') || text.len() > 100 {
        return;
    }
    let select = |operator: &str| Selector::parse(&format!("up{{a{operator}`{text}`}}"));
    match (select("=~"), select("!~")) {
        (Ok(same), Ok(other)) => assert_ne!(same.matches(&labels), other.matches(&labels), "{text}"),
        (Err(_), Err(_)) => {}
        _ => panic!("{text} is a pattern in one operator only"),
    }
    // Quoted, every text matches itself and nothing else.
    if let Ok(quoted) = Selector::parse(&format!("up{{a=~`\\Q{text}\\E`}}"))
        && !text.contains('\\')
    {
        assert_eq!(quoted.matches(&labels), text == value, "{text:?} on {value:?}");
    }
}

/// Configurations, good and bad.
pub fn configs() -> Vec<Vec<u8>> {
    super::files("config", ".yml")
}

/// Web configurations, good and bad. The certificates in them are found from everywhere.
pub fn web_configs() -> Vec<Vec<u8>> {
    let folder = format!("{}/", super::data("config").display());
    let texts = super::files("web-config", ".yml");
    let text = |bytes| String::from_utf8(bytes).expect("a text").replace("../config/", &folder);
    texts.into_iter().map(|bytes| text(bytes).into_bytes()).collect()
}

/// Selectors and patterns.
pub fn selectors() -> Vec<Vec<u8>> {
    let texts = [
        r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}"#,
        "up{a='x',}",
        r#"{"up", "a"!="x\u00e9\n"}"#,
        "up{a=`b.`}",
        r"[\w.]+[a&&b][[x][]a][[:alpha:]]\d\D\W\S\b\<",
        r"(?i)a{2,3}(b|c)*?\Qa.b\E.",
        "(a{1000}){1000}",
    ];
    texts.iter().map(|text| [&[1, b'x'], text.as_bytes()].concat()).collect()
}
