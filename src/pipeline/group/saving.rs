//! What a snapshot says of a group, and the group that it is made of again.

use super::{Cause, Cursor, Group, Serving};
use crate::config::Detector;
use crate::pipeline::saver::{Saved, Turn};
use crate::prom::duration;
use crate::snapshot::{Folder, Mark, State};
use crate::window::Window;
use std::sync::Arc;
use std::time::Instant;

impl Group {
    /// The group that a snapshot was made of, without its models: they come from the registry, and go on
    /// from where the snapshot says that they were.
    pub fn restore(
        detector: Arc<Detector>,
        state: State,
        window: Window,
        urls: &[String],
        now: Instant,
    ) -> Self {
        let State { group, champion, challenger, newest_scored_ms, cursors, causes, incidents, .. } = state;
        let mut restored = Self::new(detector, group, 0, now);
        restored.window = window;
        restored.window.set_length(duration::millis(restored.detector.window));
        let newest_ms = newest_scored_ms.unwrap_or(i64::MIN);
        // A target that is new begins at the newest score: what is older was the others'.
        let cursor = |url| Cursor::after(cursors.get(url).copied().unwrap_or(newest_ms));
        restored.cursors = urls.iter().map(cursor).collect();
        restored.newest_scored = newest_scored_ms.map(|newest_ms| (newest_ms, now));
        let known = |(then, causes): (i64, Vec<_>)| {
            (then, causes.into_iter().filter_map(Cause::from_snapshot).collect())
        };
        restored.causes = causes.into_iter().map(known).collect();
        restored.incidents = incidents.into();
        restored.is_incident = state.is_incident;
        restored.ended = state.ended.into_iter().map(|then| (then, now)).collect();
        // What was incomplete may still become complete.
        let passed_ms = champion.as_ref().map_or(newest_ms, |mark| mark.passed_ms);
        let waiting: Vec<i64> = restored.window.timestamps(passed_ms, i64::MAX).collect();
        restored.open_rows = waiting.into_iter().map(|time| (time, (time, now))).collect();
        restored.marks = [champion, challenger];
        restored
    }

    /// What a snapshot is to say of the group, if that has changed; the cursors are those of these targets.
    pub fn save(&mut self, id: u32, urls: &[String]) -> Turn {
        let name = Folder::name(&self.detector.name, &self.labels);
        if !std::mem::take(&mut self.unsaved) {
            return Turn { id, name, saved: None };
        }
        let newest_scored_ms = self.newest_scored_ms();
        let draft = |serving: &Option<Serving>| {
            serving.as_ref().map(|serving| serving.draft(newest_scored_ms.unwrap_or(i64::MIN)))
        };
        let [champion, challenger] = self.marks.clone();
        let state = State {
            detector: self.detector.name.clone(),
            watches: self.detector.watches(),
            group: self.labels.clone(),
            champion,
            challenger,
            newest_scored_ms,
            cursors: urls.iter().cloned().zip(self.cursors.iter().map(|cursor| cursor.done_ms)).collect(),
            causes: self
                .causes
                .iter()
                .map(|(then, causes)| (*then, causes.iter().map(Cause::to_snapshot).collect()))
                .collect(),
            incidents: self.incidents.iter().copied().collect(),
            is_incident: self.is_incident,
            ended: self.ended.keys().copied().collect(),
        };
        let saved = Saved {
            state,
            champion: draft(&self.serving),
            challenger: draft(&self.challenger),
            window: self.window.clone(),
        };
        Turn { id, name, saved: Some(Box::new(saved)) }
    }

    /// The last snapshot is not on disk after all.
    pub fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// How far the model in service was before this process.
    pub fn mark(&self) -> Option<&Mark> {
        self.marks[0].as_ref().filter(|_| self.serving.is_none())
    }
}
