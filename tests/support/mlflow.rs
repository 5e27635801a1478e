//! MLflow servers as in production: a database in PostgreSQL, artifacts in S3, and both behind the API of the server.

use super::{HELP, Process, free_port, http, program, wait};
use std::env;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// For a server to listen: a first start makes the tables of its database, and takes 10 s on an idle machine.
const START: Duration = Duration::from_secs(180);
/// The administrator of a server with accounts. MLflow wants twelve characters.
pub const USERNAME: &str = "promforest";
/// The administrator's password.
pub const PASSWORD: &str = "promforest-promforest";
/// Both keys of the S3 server, which refuses what is not signed with them.
const S3_KEY: &str = "promforest";
const BUCKET: &str = "mlflow";
/// Settings of MLflow's server and client in tests: no telemetry, no jobs, no links in the output, few retries.
const MLFLOW_ENV: [(&str, &str); 6] = [
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ("NO_PROXY", "127.0.0.1"),
];

/// The MLflow servers that the tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlflowKind {
    /// A current 3.x on PostgreSQL and S3, open to all.
    V3,
    /// The same, with accounts: [`USERNAME`] and [`PASSWORD`] are the administrator's.
    V3WithAccounts,
    /// The last 2.x but for fixes, on SQLite and a folder.
    V2,
}

/// A server that runs with all it needs, in a folder of its own. All of it ends with this value, and also when the
/// tests' process ends without dropping it: one server may be shared in a `static`.
#[derive(Debug)]
pub struct Mlflow {
    kind: MlflowKind,
    port: u16,
    /// `None` after [`kill`](Self::kill).
    server: Option<Process>,
    stores: Option<Stores>,
    cleanup: CleanupProcess,
    dir: PathBuf,
}

/// A server's database and artifact store.
#[derive(Debug)]
struct Stores {
    postgres: Process,
    postgres_port: u16,
    s3: Process,
    s3_port: u16,
}

impl Mlflow {
    /// Starts a server and waits until it answers.
    pub fn start(kind: MlflowKind) -> Self {
        let dir = TempDir::with_prefix("promforest-mlflow-").expect("a temporary folder can be made").keep();
        // PostgreSQL may run as another user.
        fs::set_permissions(&dir, Permissions::from_mode(0o711)).expect("the folder is writable");
        let mut cleanup = CleanupProcess::start(&dir);
        let stores = (kind != MlflowKind::V2).then(|| Stores::start(&dir, &mut cleanup));
        let mut mlflow = Self { kind, port: free_port(), server: None, stores, cleanup, dir };
        mlflow.restart();
        mlflow
    }

    /// Its base address, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder with its artifacts, laid out as their URIs are: `EXPERIMENT/RUN/artifacts/PATH`.
    pub fn artifacts(&self) -> PathBuf {
        match self.stores {
            Some(_) => self.dir.join("s3").join(BUCKET).join("artifacts"),
            None => self.dir.join("artifacts"),
        }
    }

    /// Its database: what psycopg2 or sqlite3 connects to.
    pub fn database(&self) -> String {
        match &self.stores {
            Some(stores) => format!("postgresql://mlflow@127.0.0.1:{}/postgres", stores.postgres_port),
            None => self.dir.join("mlflow.db").display().to_string(),
        }
    }

    /// Kills the server, its stores stay.
    pub fn kill(&mut self) {
        let Some(server) = self.server.take() else { return };
        let id = server.id();
        let group = format!("-{id}");
        // The process may have ended by itself.
        let _ =
            Command::new("sh").args(["-c", "kill -s KILL -- \"$0\"", &group]).stderr(Stdio::null()).status();
        drop(server);
        self.cleanup.forget(id);
    }

    /// Starts the server, after killing the one that runs, with the port and the data that it had.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(match self.kind {
            MlflowKind::V3 | MlflowKind::V3WithAccounts => python(),
            MlflowKind::V2 => program("PROMFOREST_PYTHON_MLFLOW2", &[]),
        });
        command.args([
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--workers",
            "1",
            "--serve-artifacts",
        ]);
        command.args(["--port", &self.port.to_string()]).envs(MLFLOW_ENV).process_group(0);
        if let Some(stores) = &self.stores {
            // Its tables come with the driver that MLflow does not choose by itself.
            let database = self.database().replacen("postgresql:", "postgresql+psycopg2:", 1);
            command.args(["--backend-store-uri", &database]);
            command.args(["--artifacts-destination", &format!("s3://{BUCKET}/artifacts")]);
            command.env("MLFLOW_S3_ENDPOINT_URL", format!("http://127.0.0.1:{}", stores.s3_port));
            command.env("AWS_ACCESS_KEY_ID", S3_KEY).env("AWS_SECRET_ACCESS_KEY", S3_KEY);
            command.env("AWS_DEFAULT_REGION", "us-east-1");
        } else {
            command.args(["--backend-store-uri", &format!("sqlite:///{}", self.database())]);
            command.arg("--artifacts-destination").arg(self.artifacts());
        }
        if self.kind == MlflowKind::V3WithAccounts {
            let accounts = self.dir.join("accounts.ini");
            let text = format!(
                "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{}\nadmin_username = {USERNAME}\n\
                 admin_password = {PASSWORD}\nauthorization_function = \
                 mlflow.server.auth:authenticate_request_basic_auth\n",
                self.dir.join("accounts.db").display(),
            );
            fs::write(&accounts, text).expect("the folder is writable");
            command.args(["--app-name", "basic-auth"]).env("MLFLOW_AUTH_CONFIG_PATH", accounts);
            command.env("MLFLOW_FLASK_SERVER_SECRET_KEY", PASSWORD);
        }
        let mut server = Process::spawn("mlflow", command, &self.dir);
        self.cleanup.watch(server.id());
        let address = self.address();
        let poll = || match http::get(&address, "/health") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait("MLflow answers", START, &mut [&mut server], poll);
        self.server = Some(server);
    }

    /// Runs Python code with the libraries of `tests/components/requirements.txt` and MLflow's client set up for this
    /// server; what it prints. `args` are its `sys.argv[1:]`.
    pub fn python(&self, code: &str, args: &[&str]) -> String {
        let mut command = Command::new(python());
        command.arg("-c").arg(code).args(args).current_dir(&self.dir).stdin(Stdio::null());
        command.envs(MLFLOW_ENV).env("MLFLOW_TRACKING_URI", self.url()).env("GIT_PYTHON_REFRESH", "quiet");
        if self.kind == MlflowKind::V3WithAccounts {
            command.env("MLFLOW_TRACKING_USERNAME", USERNAME).env("MLFLOW_TRACKING_PASSWORD", PASSWORD);
        }
        let output = command.output().unwrap_or_else(|err| panic!("Python does not start: {err}"));
        let tail = self.server.as_ref().map(Process::tail).unwrap_or_default();
        assert!(
            output.status.success(),
            "Python: {}\n{}\n{tail}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("Python prints UTF-8")
    }

    /// All that the server has printed.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Process::log).unwrap_or_default()
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        self.kill();
        self.cleanup.dismiss();
        // The cleanup process terminates them, so that PostgreSQL frees its shared memory.
        let stores = self.stores.iter_mut().flat_map(|stores| [&mut stores.s3, &mut stores.postgres]);
        stores.for_each(Process::wait_for_end);
        self.cleanup.wait_for_end();
    }
}

impl Stores {
    fn start(dir: &Path, cleanup: &mut CleanupProcess) -> Self {
        let data = dir.join("postgres");
        fs::create_dir(&data).expect("the folder is writable");
        let user = (data.metadata().expect("the folder was created").uid() == 0).then(|| {
            let (uid, gid) = postgres_user();
            std::os::unix::fs::chown(&data, Some(uid), Some(gid)).expect("root may give a folder away");
            (uid, gid)
        });
        let postgres = |name: &str| {
            let mut command = Command::new(postgres_program(name));
            command.arg("-D").arg(&data).process_group(0);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };

        let mut initdb = postgres("initdb");
        initdb.args(["-U", "mlflow", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.current_dir(dir).stdin(Stdio::null()).output();
        let made = made.unwrap_or_else(|err| panic!("initdb does not start: {err}"));
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

        let postgres_port = free_port();
        let mut command = postgres("postgres");
        command.args(["-p", &postgres_port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]);
        let mut postgres = Process::spawn("postgres", command, dir);
        cleanup.watch(postgres.id());

        let s3_port = free_port();
        let mut command = Command::new(program("S3S_FS", &["s3s-fs"]));
        command.args(["--host", "127.0.0.1", "--port", &s3_port.to_string()]);
        command.args(["--access-key", S3_KEY, "--secret-key", S3_KEY]).arg(dir.join("s3")).process_group(0);
        fs::create_dir_all(dir.join("s3").join(BUCKET)).expect("the folder is writable"); // a bucket
        let mut s3 = Process::spawn("s3", command, dir);
        cleanup.watch(s3.id());

        let log = postgres.log_file();
        let poll = || {
            let log = fs::read_to_string(&log).map_err(|err| err.to_string())?;
            log.contains("ready to accept connections").then_some(()).ok_or_else(|| "not ready".into())
        };
        wait("PostgreSQL accepts connections", START, &mut [&mut postgres], poll);
        let poll = || http::get(&format!("127.0.0.1:{s3_port}"), "/").map_err(|err| err.to_string());
        wait("S3 answers", START, &mut [&mut s3], poll);
        Self { postgres, postgres_port, s3, s3_port }
    }
}

/// The section `registry` for an MLflow server, with more of its settings.
pub fn registry_section(url: &str, more: &str) -> String {
    format!("registry: {{poll_interval: 1s, mlflow: {{tracking_uri: '{url}'{more}}}}}")
}

/// The Python that tests run: `PROMFOREST_PYTHON`.
pub fn python() -> PathBuf {
    program("PROMFOREST_PYTHON", &[])
}

/// `initdb` or `postgres`: in the folder `POSTGRES_BIN`, or else in `PATH`.
fn postgres_program(name: &str) -> PathBuf {
    let folder = env::var_os("POSTGRES_BIN").filter(|folder| !folder.is_empty());
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = match folder {
        Some(folder) => vec![folder.into()],
        None => env::split_paths(&path).collect(),
    };
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} in POSTGRES_BIN, nor in PATH where that is not set\n{HELP}"))
}

/// User and group as whom PostgreSQL runs when the tests run as root, which it refuses.
fn postgres_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let fields = users.lines().find(|line| line.starts_with("postgres:")).map(|line| line.split(':'));
    let mut ids = fields.into_iter().flatten().skip(2).map_while(|id| id.parse().ok());
    ids.next().zip(ids.next()).expect("PostgreSQL's package has made its user")
}

/// A watchman over process groups and a folder: ends the ones and removes the other as soon as it is dismissed, or the
/// tests' process is gone. A value in a `static` is never dropped, and a process that is killed drops nothing.
#[derive(Debug)]
struct CleanupProcess(Child);

/// Reads `+ID` and `-ID` until the other end is closed.
const CLEANUP_SCRIPT: &str = r#"
declare -A groups
alive() {
    for group in "${!groups[@]}"; do kill -s 0 -- "-$group" 2>/dev/null && return; done
    return 1
}
while read -r line; do
    if [ "${line:0:1}" = + ]; then groups[${line:1}]=; else unset "groups[${line:1}]"; fi
done
for group in "${!groups[@]}"; do kill -s TERM -- "-$group" 2>/dev/null; done
for ((tenths = 0; tenths < 50; tenths++)); do
    alive || break
    sleep 0.1
done
for group in "${!groups[@]}"; do kill -s KILL -- "-$group" 2>/dev/null; done
rm -rf -- "$1"
"#;

impl CleanupProcess {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", CLEANUP_SCRIPT, "janitor"]).arg(dir);
        // In a group of its own, Ctrl-C does not reach it.
        command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        Self(command.spawn().unwrap_or_else(|err| panic!("bash does not start: {err}")))
    }

    fn watch(&mut self, group: u32) {
        self.send('+', group);
    }

    fn forget(&mut self, group: u32) {
        self.send('-', group);
    }

    fn send(&mut self, sign: char, group: u32) {
        let stdin = self.0.stdin.as_mut().expect("it is not dismissed yet");
        writeln!(stdin, "{sign}{group}").expect("it reads until it is dismissed");
    }

    /// From here on it does its work.
    fn dismiss(&mut self) {
        self.0.stdin = None;
    }

    fn wait_for_end(&mut self) {
        let _ = self.0.wait();
    }
}
