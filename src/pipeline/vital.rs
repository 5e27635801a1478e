//! Parts without which the process is of no use: when one of them dies by a panic, the process ends, and whoever
//! started it starts it again. The alternative, going on without the part, would look healthy and score nothing.

use std::thread;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Watches over the parts.
#[derive(Clone)]
pub struct Vitals {
    died: watch::Sender<Option<&'static str>>,
}

/// Held by a part while it lives.
pub struct Vital {
    part: &'static str,
    died: watch::Sender<Option<&'static str>>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self { died: watch::Sender::new(None) }
    }
}

impl Vitals {
    /// What a part of this name has to hold.
    pub fn watch(&self, part: &'static str) -> Vital {
        Vital { part, died: self.died.clone() }
    }

    /// Starts a task as a part.
    pub fn spawn<F>(&self, part: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let vital = self.watch(part);
        tokio::spawn(async move {
            let _vital = vital;
            task.await
        })
    }

    /// The name of the part that died first, once one has.
    pub async fn died(&self) -> &'static str {
        let mut died = self.died.subscribe();
        let seen = died.wait_for(Option::is_some).await;
        seen.expect("we hold a sender").expect("it was waited for")
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if thread::panicking() {
            self.died.send_if_modified(|died| died.is_none() && died.replace(self.part).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn f44_who_panics_is_named_and_who_ends_is_not() {
        let vitals = Vitals::default();
        vitals.spawn("a task that ends", async {}).await.expect("no panic");
        let aborted = vitals.spawn("a task that is told to end", std::future::pending::<()>());
        aborted.abort();
        assert!(aborted.await.is_err());
        let vital = vitals.watch("a thread that ends");
        thread::spawn(move || drop(vital)).join().expect("no panic");
        assert!(tokio::time::timeout(Duration::from_millis(10), vitals.died()).await.is_err());

        let vital = vitals.watch("the thread");
        let thread = thread::spawn(move || {
            let _vital = vital;
            panic!("part of the test");
        });
        assert!(thread.join().is_err());
        assert_eq!(vitals.died().await, "the thread");

        let vitals = Vitals::default();
        let task = vitals.spawn("the task", async {
            tokio::task::yield_now().await;
            panic!("part of the test");
        });
        assert_eq!(vitals.died().await, "the task");
        assert!(task.await.is_err());
        let second = vitals.spawn("another", async { panic!("part of the test") });
        assert!(second.await.is_err());
        assert_eq!(vitals.died().await, "the task", "the first is the cause");
    }
}
