//! Writes snapshots: every five minutes, and at the end.
//!
//! The engine hands out one group after another, so that none of its answers takes longer than the copy of one
//! window's newest rows; putting it into words and on disk happens here.

use super::engine::Command;
use super::serving::Cause;
use crate::snapshot::{self, Draft, Folder, State};
use crate::window::Window;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, warn};

/// Pause between two rounds: what a start reads of five minutes takes no time, and a disk is spared.
const EVERY: Duration = Duration::from_secs(300);
/// How long the round at the end may take. Groups that it does not reach keep their file of before.
const LAST_ROUND: Duration = Duration::from_secs(10);

/// A group as the engine hands it out.
pub struct Turn {
    /// Its number.
    pub id: u32,
    /// Name of its file.
    pub name: String,
    /// What it has become, if that is not on disk.
    pub saved: Option<Box<Saved>>,
}

/// What a group has become.
pub struct Saved {
    /// Without its models.
    pub state: State,
    /// The model in service.
    pub champion: Option<Draft>,
    /// The one beside it.
    pub challenger: Option<Draft>,
    /// Its samples and scores.
    pub window: Window,
}

impl Saved {
    /// The bytes of its file.
    pub fn encode(self) -> Vec<u8> {
        let mark = |draft: Option<Draft>| draft.and_then(|draft| draft.mark());
        let (champion, challenger) = (mark(self.champion), mark(self.challenger));
        snapshot::encode(State { champion, challenger, ..self.state }, &self.window)
    }
}

impl Cause {
    /// As a snapshot says it.
    pub fn to_snapshot(&self) -> snapshot::Cause {
        snapshot::Cause {
            feature: self.feature.clone(),
            reason: self.reason.as_str().into(),
            share: self.share,
            usual: self.usual.map(|value| Some(value).filter(|value| value.is_finite())),
        }
    }

    /// What a snapshot says; none for a reason that is not known here.
    pub fn from_snapshot(cause: snapshot::Cause) -> Option<Self> {
        let snapshot::Cause { feature, reason, share, usual } = cause;
        let reason = crate::detect::Reason::parse(&reason)?;
        Some(Self { feature, reason, share, usual: usual.map(|value| value.unwrap_or(f64::NAN)) })
    }
}

/// Writes a round every five minutes until the engine is gone, and a last one when told to close.
pub async fn run(engine: mpsc::WeakSender<Command>, mut folder: Folder, mut closing: watch::Receiver<bool>) {
    loop {
        let close = closing.wait_for(|closing| *closing);
        let is_last = tokio::time::timeout(EVERY, close).await.is_ok();
        let round = round(&engine, folder);
        let done = match is_last {
            true => tokio::time::timeout(LAST_ROUND, round).await.unwrap_or_else(|_| {
                warn!(component = "snapshot", limit = ?LAST_ROUND, "the last round of snapshots took too long: remote read has to bridge more");
                None
            }),
            false => round.await,
        };
        match done {
            Some(back) if !is_last => folder = back,
            _ => return,
        }
    }
}

/// One round over all groups. None when the engine is gone, or the writing broke.
async fn round(engine: &mpsc::WeakSender<Command>, mut folder: Folder) -> Option<Folder> {
    let started = Instant::now();
    let mut names = HashSet::new();
    let mut failed: Option<io::Error> = None;
    let mut after = None;
    while failed.is_none() {
        let (reply, answer) = oneshot::channel();
        engine.upgrade()?.send(Command::Snapshot { after, reply }).await.ok()?;
        let Some(Turn { id, name, saved }) = answer.await.ok()? else { break };
        after = Some(id);
        names.insert(name.clone());
        let Some(saved) = saved else { continue };
        let write = move || {
            let written = folder.write(&name, &saved.encode());
            (folder, written)
        };
        let written = match tokio::task::spawn_blocking(write).await {
            Ok((back, written)) => {
                folder = back;
                written
            }
            Err(panic) => {
                error!(component = "snapshot", err = %panic, "the thread that writes snapshots ended: there are none any more");
                return None;
            }
        };
        if let Err(error) = written {
            failed = Some(error);
            engine.upgrade()?.send(Command::Unsaved(id)).await.ok()?;
        }
    }
    let finish = move || {
        folder.finish(&names, started.elapsed(), failed);
        folder
    };
    tokio::task::spawn_blocking(finish).await.ok()
}
