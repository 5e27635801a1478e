//! The contract with a service manager: notifications, an inherited socket, and the journal's lines.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{PROGRAM, http};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Passes standard input as the first socket, as a service manager does.
const PASS_SOCKET: &str = r#"exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;

/// A child that ends with the test.
struct Service(Child);

impl Service {
    fn start(command: &mut Command, folder: &Path) -> Self {
        fs::write(folder.join("promforest.yml"), "remote_write: []\nremote_read: []\n").expect("writable");
        command.current_dir(folder).args(["--config.file=promforest.yml", "--storage.path=data"]);
        Self(command.spawn().expect("the program starts"))
    }

    fn terminate(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().expect("kill runs").success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_service_manager_is_notified() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut command = Command::new(PROGRAM);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .arg("--web.listen-address=127.0.0.1:0");
    let service = Service::start(&mut command, folder.path());
    let next = || {
        let mut bytes = [0; 256];
        let n = manager.recv(&mut bytes).expect("a notification");
        String::from_utf8_lossy(&bytes[..n]).trim_end().to_string()
    };
    assert_eq!([next(), next(), next()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    service.terminate();
    let stopping = std::iter::repeat_with(next).find(|state| state != "WATCHDOG=1");
    assert_eq!(stopping.as_deref(), Some("STOPPING=1"));
}

#[test]
fn an_inherited_socket_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let mut command = Command::new("sh");
    command.args(["-c", PASS_SOCKET, "sh", PROGRAM, "--web.systemd-socket"]);
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    let _service = Service::start(&mut command, folder.path());
    // A connection waits in the socket until the program accepts it.
    assert_eq!(http::get(&address, "/-/healthy").expect("a response").status, 200);
}

#[test]
fn without_a_socket_the_start_fails() {
    let output = support::command::run(&["--web.systemd-socket"]);
    assert_eq!(output.status, 1);
    let expected = "cannot listen on the socket of the service manager: no socket was passed";
    assert!(output.stderr.contains(expected), "{}", output.stderr);
}

#[test]
fn lines_of_the_journal_have_a_priority_instead_of_time_and_level() {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, stderr) = UnixStream::pair().expect("sockets");
    journal.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let socket = fs::metadata(format!("/proc/self/fd/{}", stderr.as_raw_fd())).expect("a socket");
    let mut command = Command::new(PROGRAM);
    command.env("JOURNAL_STREAM", format!("{}:{}", socket.dev(), socket.ino()));
    command.arg("--web.listen-address=127.0.0.1:0").stderr(Stdio::from(OwnedFd::from(stderr)));
    let _service = Service::start(&mut command, folder.path());
    let mut line = String::new();
    BufReader::new(journal).read_line(&mut line).expect("a line");
    assert!(line.starts_with("<6>msg=listening "), "{line}");
}
