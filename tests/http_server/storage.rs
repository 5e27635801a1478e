//! The storage folder.

use crate::TIMEOUT;
use crate::support::PROGRAM;
use crate::support::client::folder;
use crate::support::sidecar::Sidecar;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn f21_a_storage_folder_is_made_or_refused_in_one_line() {
    let folder = folder(&[("file", "")]);
    let start = |storage: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args(["--web.listen-address=127.0.0.1:0", "--storage.path"]).arg(storage);
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    };
    for (storage, reason) in [
        (folder.path().join("file"), "File exists (os error 17)"),
        (folder.path().join("file/below"), "Not a directory (os error 20)"),
        // Not writable, also for root.
        ("/proc/sys/promforest".into(), "No such file or directory (os error 2)"),
        ("/proc/self".into(), "No such file or directory (os error 2)"),
    ] {
        let output = start(&storage).wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(1), "{}", storage.display());
        let mut expected = String::new();
        writeln!(expected, "promforest: cannot use {} for storage: {reason}", storage.display())
            .expect("text");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
    let missing = folder.path().join("a/b/c");
    let mut child = start(&missing);
    let until = Instant::now() + TIMEOUT;
    while !missing.is_dir() {
        assert!(Instant::now() < until && child.try_wait().expect("a child").is_none(), "it is not made");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("the program runs");
    child.wait().expect("the program ends");
}

/// Another port lets both listen. One that was killed leaves no lock behind.
#[test]
fn a_storage_folder_in_use_is_refused_to_a_second_sidecar_only() {
    let mut sidecar = Sidecar::start(&[]);
    let folder = sidecar.folder.path().to_path_buf();
    let run =
        |args: &[&str]| Command::new(PROGRAM).args(args).current_dir(&folder).output().expect("it runs");
    let second = run(&["--config.file=promforest.yml", "--web.listen-address=127.0.0.1:0"]);
    let error = "promforest: the storage directory promforest-data is in use by another promforest: \
                 end that one, or start this one with another --storage.path\n";
    assert_eq!((second.status.code(), &*String::from_utf8_lossy(&second.stderr)), (Some(1), error));
    for beside in [&["models", "list"][..], &["maintenance", "start", "{}"], &["maintenance", "end", "{}"]] {
        let output = run(&[beside, &["--config.file=promforest.yml"]].concat());
        assert!(output.status.success(), "{beside:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    sidecar.kill();
    sidecar.restart();
}
