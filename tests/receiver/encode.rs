//! Write requests as protobuf by hand, so that a test can send broken ones.

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub fn key(number: u64, wire_type: u64) -> Vec<u8> {
    varint(number << 3 | wire_type)
}

pub fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [key(number, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

pub fn label(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(1, &[field(1, name), field(2, value)].concat())
}

pub fn labels(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(name, value)| label(name.as_bytes(), value.as_bytes())).collect()
}

pub fn sample(value: f64, timestamp_ms: i64) -> Vec<u8> {
    let value = [key(1, 1), value.to_bits().to_le_bytes().to_vec()].concat();
    field(2, &[value, key(2, 0), varint(timestamp_ms as u64)].concat())
}

/// A `TimeSeries` of ready fields.
pub fn raw_series(fields: &[Vec<u8>]) -> Vec<u8> {
    field(1, &fields.concat())
}

/// A series that the detector watches.
pub fn series(name: &str, samples: &[(i64, f64)]) -> Vec<u8> {
    let samples = samples.iter().map(|(timestamp_ms, value)| sample(*value, *timestamp_ms));
    raw_series(&[watched(name), samples.collect::<Vec<_>>().concat()])
}

pub fn watched(name: &str) -> Vec<u8> {
    labels(&[("__name__", name), ("instance", "a"), ("job", "node")])
}
