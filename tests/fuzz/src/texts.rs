//! What people write: configuration and selectors.

use promforest::config::Config;
use promforest::prom::{Labels, METRIC_NAME, Selector};

/// A configuration is read, or every error has a line of text.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Err(errors) = Config::parse(text) {
        assert!(!errors.is_empty());
        assert!(errors.iter().all(|error| !error.to_string().is_empty()));
    }
}

/// A selector selects, and refuses to select everything; its opposite selects the opposite. The first byte cuts the rest
/// into a selector and the value of a label that it looks at.
pub fn selector(data: &[u8]) {
    let Some((cut, text)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let cut = (0..=usize::from(*cut).min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    let (value, text) = text.split_at(cut.expect("0 is a boundary"));
    let labels = Labels::new([(METRIC_NAME, "up"), ("a", value)]).expect("two names");
    if let Ok(selector) = Selector::parse(text) {
        let _ = selector.matches(&labels);
        // Prometheus gets the same matchers.
        assert!(selector.to_proto().count() > 0);
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
