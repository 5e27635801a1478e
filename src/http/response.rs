//! Responses of the server.

use super::body::Body;
use crate::budget::{BudgetLease, ByteBudget};
use crate::telemetry::PageFormat;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use prometheus_client::registry::Registry;

/// Most bytes of the pages of one kind that are being sent: a client may read slowly, and a page of many groups is large.
const MAX_BYTES_BEING_SENT: usize = 64 << 20;

/// The response of a route.
pub type Response = hyper::Response<Body>;

/// A response with one text, which ends with a line feed, as `text/plain`.
pub fn text(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(format!("{text}\n").into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The response to a request with another method than these.
pub fn method_not_allowed(methods: &'static str) -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("allowed here: {methods}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// The pages of one kind that are being sent. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PagesBeingSent(ByteBudget);

impl PagesBeingSent {
    /// The text as a body that counts until it is sent, or 503 if others take too much memory. One page is sent, however
    /// large it is.
    pub fn respond(&self, text: String) -> Response {
        let mut lease = self.0.lease();
        if lease.resize(text.len(), MAX_BYTES_BEING_SENT.max(text.len())).is_err() {
            return self::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are being sent");
        }
        Response::new(Bytes::from_owner(PageBeingSent { text, _lease: lease }).into())
    }

    /// The page of `/metrics`, in the format that the headers of the request accept.
    pub fn respond_with_metrics(&self, registry: &Registry, headers: &HeaderMap) -> Response {
        let accept: Vec<&str> =
            headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let format = PageFormat::negotiate(&accept.join(","));
        let Ok(text) = format.encode(registry) else {
            return self::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded");
        };
        let mut response = self.respond(text);
        if response.status() == StatusCode::OK {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        }
        response
    }
}

struct PageBeingSent {
    text: String,
    _lease: BudgetLease,
}

impl AsRef<[u8]> for PageBeingSent {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_share_a_limit_until_they_are_sent() {
        let pages = PagesBeingSent::default();
        let large = || "x".repeat(MAX_BYTES_BEING_SENT + 1);
        let page = pages.respond(large());
        assert_eq!(page.status(), StatusCode::OK, "one page is sent, however large it is");
        assert_eq!(pages.0.in_use(), MAX_BYTES_BEING_SENT + 1);
        assert_eq!(pages.respond("x".into()).status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(page);
        assert_eq!(pages.0.in_use(), 0);
        assert_eq!(pages.respond(large()).status(), StatusCode::OK);
    }
}
