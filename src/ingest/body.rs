//! The body of a write request, and the limits within which it is received.

use super::{BODY_LIMIT, READ_TIMEOUT};
use crate::http::request_body::{BodyLimits, BodyReceiver, ReceivedBody};
use crate::prom::wire::ProtocolVersion;
use crate::tenant::Tenant;

/// Limits of the bodies of write requests. Prometheus sends some hundred kilobytes.
const LIMITS: BodyLimits = BodyLimits {
    body: BODY_LIMIT,
    in_flight: 64 << 20,
    small_body: 1 << 20,
    reserved_for_small: 16 << 20,
    timeout: READ_TIMEOUT,
};

/// A received body.
#[derive(Debug)]
pub struct WriteBody {
    /// The body, still compressed.
    pub body: ReceivedBody,
    /// The version that the headers name; from [`negotiate`](super::negotiate).
    pub version: ProtocolVersion,
    /// The tenant that the headers name; `None` without tenants.
    pub tenant: Option<Tenant>,
}

/// A receiver of the bodies of write requests.
pub fn body_receiver() -> BodyReceiver {
    BodyReceiver::new(LIMITS)
}
