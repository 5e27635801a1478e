//! Signals of the operating system.

use super::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The action that a signal asks for.
pub enum SignalAction {
    /// SIGHUP: reload the configuration.
    Reload,
    /// SIGINT or SIGTERM, by name: shut down.
    Shutdown(&'static str),
}

/// The signals that the sidecar handles.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn install() -> Result<Self, Error> {
        let signal =
            |kind| signal(kind).map_err(|source| Error::System { what: "listen for signals", source });
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next_action(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.interrupt.recv() => SignalAction::Shutdown("SIGINT"),
            _ = self.terminate.recv() => SignalAction::Shutdown("SIGTERM"),
            _ = self.hangup.recv() => SignalAction::Reload,
        }
    }

    /// Waits for a signal to shut down.
    pub async fn wait_for_shutdown(&mut self) {
        while let SignalAction::Reload = self.next_action().await {}
    }
}
