//! Supervision of the essential tasks and threads: a panic in one of them ends the process, so that its service manager
//! restarts it. A process that went on without the task would look healthy and score nothing.

use std::thread;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// See the [module](self).
#[derive(Clone)]
pub struct Supervisor {
    panicked: watch::Sender<Option<&'static str>>,
}

/// Held by a task while it runs; reports a panic when it is dropped.
pub struct TaskGuard {
    name: &'static str,
    panicked: watch::Sender<Option<&'static str>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self { panicked: watch::Sender::new(None) }
    }
}

impl Supervisor {
    /// A guard for the task or thread of this name.
    pub fn guard(&self, name: &'static str) -> TaskGuard {
        TaskGuard { name, panicked: self.panicked.clone() }
    }

    /// Spawns a supervised task.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let guard = self.guard(name);
        tokio::spawn(async move {
            let _guard = guard;
            task.await
        })
    }

    /// Waits for a panic, and returns the name of the task that panicked first.
    pub async fn wait_for_panic(&self) -> &'static str {
        let mut panicked = self.panicked.subscribe();
        let name = panicked.wait_for(Option::is_some).await;
        name.expect("self holds a sender").expect("the wait ended on a name")
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.panicked
                .send_if_modified(|panicked| panicked.is_none() && panicked.replace(self.name).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn f44_a_task_that_panics_is_named_and_one_that_ends_is_not() {
        let supervisor = Supervisor::default();
        supervisor.spawn("a task that ends", async {}).await.expect("no panic");
        let aborted = supervisor.spawn("a task that is told to end", std::future::pending::<()>());
        aborted.abort();
        assert!(aborted.await.is_err());
        let guard = supervisor.guard("a thread that ends");
        thread::spawn(move || drop(guard)).join().expect("no panic");
        assert!(tokio::time::timeout(Duration::from_millis(10), supervisor.wait_for_panic()).await.is_err());

        let guard = supervisor.guard("the thread");
        let thread = thread::spawn(move || {
            let _guard = guard;
            panic!("part of the test");
        });
        assert!(thread.join().is_err());
        assert_eq!(supervisor.wait_for_panic().await, "the thread");

        let supervisor = Supervisor::default();
        let task = supervisor.spawn("the task", async {
            tokio::task::yield_now().await;
            panic!("part of the test");
        });
        assert_eq!(supervisor.wait_for_panic().await, "the task");
        assert!(task.await.is_err());
        let second = supervisor.spawn("another", async { panic!("part of the test") });
        assert!(second.await.is_err());
        assert_eq!(supervisor.wait_for_panic().await, "the task", "the first is the cause");
    }
}
