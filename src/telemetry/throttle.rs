//! A throttle for log lines that repeat.

use std::time::{Duration, Instant};

/// Limits a repeated log line to one per interval, and counts the events in between.
pub struct LogThrottle {
    interval: Duration,
    last_logged: Option<Instant>,
    count: usize,
}

impl LogThrottle {
    /// A throttle that lets the first event through, and then one line per `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last_logged: None, count: 0 }
    }

    /// Adds `count` events. Returns the events since the last line if a line is due.
    pub fn add(&mut self, count: usize) -> Option<usize> {
        self.count += count;
        if self.last_logged.is_some_and(|last| last.elapsed() < self.interval) {
            return None;
        }
        self.last_logged = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_logged_once_per_interval() {
        let interval = Duration::from_secs(60);
        let mut throttle = LogThrottle::new(interval);
        assert_eq!(throttle.add(3), Some(3));
        assert_eq!((throttle.add(1), throttle.add(1)), (None, None));
        throttle.last_logged = throttle.last_logged.and_then(|last| last.checked_sub(interval));
        assert_eq!(throttle.add(1), Some(3), "the count includes the events without a line");
    }
}
