//! Responses of the server.

use super::body::Body;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

/// The response of a route.
pub type Response = hyper::Response<Body>;

/// A response with one text, which ends with a line feed, as `text/plain`.
pub fn text(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(format!("{text}\n").into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
