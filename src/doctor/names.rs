//! The metric name that is nearest to the one of a selector.

use crate::prom::Selector;
use strsim::levenshtein;

/// Most distance of a name that is proposed, as a share of the longer one's length.
const MAX_DISTANCE: f64 = 0.5;

/// The name with the fewest differences from the metric name, or its pattern, of a selector.
pub fn nearest<'n>(selector: &Selector, names: &'n [String]) -> Option<&'n str> {
    let wanted = plain_name(&selector.to_string());
    let share = |name: &str| levenshtein(&wanted, name) as f64 / wanted.len().max(name.len()).max(1) as f64;
    let candidates = names.iter().map(|name| (share(name), name.as_str()));
    let best = candidates.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 <= MAX_DISTANCE).then_some(best.1)
}

/// The metric name of a selector's text; of a pattern its first alternatives.
fn plain_name(text: &str) -> String {
    let quoted = text.split_once("__name__").and_then(|(_, rest)| rest.split('"').nth(1));
    let name = quoted.unwrap_or_else(|| text.split('{').next().unwrap_or_default());
    let mut plain = String::new();
    let mut is_other_alternative = false;
    for c in name.chars() {
        match c {
            '|' => is_other_alternative = true,
            '(' | ')' => is_other_alternative = false,
            c if !is_other_alternative && (c.is_ascii_alphanumeric() || c == '_' || c == ':') => {
                plain.push(c)
            }
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_has_the_fewest_differences() {
        let names = ["up", "node_network_receive_bytes_total", "http_requests_total"].map(String::from);
        let of = |selector: &str| nearest(&Selector::parse(selector).expect("a selector"), &names);
        let network = Some("node_network_receive_bytes_total");
        assert_eq!(of("node_network_recieve_bytes"), network);
        assert_eq!(of(r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}"#), network);
        assert_eq!(of(r#"http_request_total{code="200"}"#), Some("http_requests_total"));
        assert_eq!(of("zzzzzzzzzzzz"), None);
        assert_eq!(levenshtein("kitten", "sitting"), 3);
    }
}
