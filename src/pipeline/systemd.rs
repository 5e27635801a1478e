//! The service manager: readiness, shutdown and watchdog over its notification socket, and a socket that it opened.
//!
//! Without a service manager, all of it does nothing.

use sd_notify::NotifyState;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::warn;

/// Least interval of reports to the watchdog.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Sends a state to the service manager.
pub fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(component = "systemd", err = %error, "cannot notify the service manager");
    }
}

/// Reports to the watchdog that the process runs, twice in each of its intervals.
pub async fn report_to_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval((interval / 2).max(MIN_INTERVAL));
    loop {
        ticks.tick().await;
        notify(NotifyState::Watchdog);
    }
}

/// The listener of socket activation.
///
/// # Errors
/// The service manager passed no socket, several, or one of another kind.
pub fn listener() -> Result<TcpListener> {
    let mut sockets = listenfd::ListenFd::from_env();
    if sockets.len() > 1 {
        let text = format!("{} sockets were passed, and one can be served", sockets.len());
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let no_socket = || Error::new(ErrorKind::NotFound, "no socket was passed: start promforest.socket");
    let listener = sockets.take_tcp_listener(0)?.ok_or_else(no_socket)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
