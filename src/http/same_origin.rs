//! Protection of forms: a request that changes something must come from a page of this server.
//!
//! A browser adds the password of this server also to a request that a page of another site makes. `Sec-Fetch-Site` and
//! `Origin` tell such a request apart, and a page cannot set either. A token in the form was not taken: it would need a
//! secret of the process, and a page that stays open over a restart would fail.

use super::url::Url;
use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};

/// The relation of the page that made a request to this server (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// True if a browser sent the request for a page of this server. `external_url` is its address behind a proxy, which may
/// change `Host`.
pub fn is_same_origin(headers: &HeaderMap, external_url: Option<&Url>) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // Browsers send it to servers with TLS and to this machine.
    if let Some(site) = text(&SEC_FETCH_SITE) {
        return site == "same-origin";
    }
    let Some((_, origin)) = text(&ORIGIN).and_then(|origin| origin.split_once("://")) else { return false };
    let is_origin = |authority: &str| origin.eq_ignore_ascii_case(authority);
    text(&HOST).is_some_and(is_origin) || external_url.is_some_and(|url| is_origin(&url.authority()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn only_pages_of_this_server_may_send_a_form() {
        let public: Url = "https://public.example/promforest".parse().expect("a URL");
        let cases: [(&[(&str, &str)], bool); 10] = [
            (&[("host", "a:9599"), ("sec-fetch-site", "same-origin"), ("origin", "http://a:9599")], true),
            (&[("host", "a:9599"), ("sec-fetch-site", "cross-site"), ("origin", "http://a:9599")], false),
            (&[("host", "a:9599"), ("sec-fetch-site", "same-site")], false),
            (&[("host", "a:9599"), ("sec-fetch-site", "none")], false),
            (&[("host", "a:9599"), ("origin", "http://a:9599")], true),
            (&[("host", "a:9599"), ("origin", "http://evil.example")], false),
            (&[("host", "a:9599"), ("origin", "http://a:9599.evil.example")], false),
            (&[("host", "a:9599"), ("origin", "null")], false),
            (&[("host", "a:9599")], false),
            (&[("host", "backend:80"), ("origin", "https://PUBLIC.example")], true),
        ];
        for (headers, expected) in cases {
            let header = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            let map: HeaderMap = headers.iter().map(header).collect();
            assert_eq!(is_same_origin(&map, Some(&public)), expected, "{headers:?}");
        }
        let behind_proxy = HeaderMap::from_iter([
            (HOST, HeaderValue::from_static("backend:80")),
            (ORIGIN, HeaderValue::from_static("https://public.example")),
        ]);
        assert!(!is_same_origin(&behind_proxy, None), "the address behind the proxy is not known");
    }
}
