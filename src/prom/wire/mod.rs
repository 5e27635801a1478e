//! The bytes of remote write: bounded snappy, and a visit of the protobuf message in place.
//!
//! A message tree (prost's, say) would cost an allocation per label of every series, and most
//! series that arrive are not watched. It would also be a bomb: two wire bytes become one empty
//! `TimeSeries` of a hundred bytes. The visit hands out borrowed bytes and keeps nothing; prost
//! remains its oracle in the tests and its baseline in the bench.

mod protobuf;
pub mod snappy;
pub mod v1;

pub use protobuf::Malformed;
