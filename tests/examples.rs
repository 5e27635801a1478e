//! The examples of `deploy/examples`: each has its steps, a configuration that loads, and a sender's that Prometheus takes.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::PrometheusVersion;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/examples");
/// Files of credentials that the examples name and the user makes.
const CREDENTIALS: [(&str, &str); 1] = [("grafana-cloud", "token")];
/// A program without the feature does not read it.
const KAFKA: &str = "kafka";
/// `tests/kubernetes.rs` checks it.
const KUBERNETES: &str = "kube-prometheus-stack";

/// The folders of the examples, sorted by name.
fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(EXAMPLES).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn name(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).expect("UTF-8")
}

/// Copies the example's files, and makes the credentials that they name.
fn copy(folder: &Path) -> tempfile::TempDir {
    let copied = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(folder).expect("an example") {
        let path = entry.expect("a file").path();
        fs::copy(&path, copied.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    for (_, file) in CREDENTIALS.iter().filter(|(example, _)| *example == name(folder)) {
        fs::write(copied.path().join(file), "secret").expect("writable");
    }
    copied
}

#[test]
fn each_example_has_its_steps() {
    let overview = fs::read_to_string(Path::new(EXAMPLES).join("README.md")).expect("README.md");
    assert!(examples().len() >= 6);
    for folder in examples() {
        let page = fs::read_to_string(folder.join("README.md")).expect("README.md");
        assert!(page.lines().any(|line| line.starts_with("1. ")), "{} has no steps", folder.display());
        let link = format!("]({}/README.md)", name(&folder));
        assert!(overview.contains(&link), "deploy/examples/README.md has no link {link}");
        for entry in fs::read_dir(&folder).expect("an example") {
            let path = entry.expect("a file").path();
            let file = self::name(&path);
            assert!(
                file == "README.md" || page.contains(file),
                "{} does not mention {file}",
                folder.display()
            );
        }
    }
}

#[test]
fn the_configurations_load() {
    for folder in examples().iter().filter(|folder| name(folder) != KUBERNETES) {
        if name(folder) == KAFKA && !cfg!(feature = "kafka") {
            continue;
        }
        let copied = copy(folder);
        let checked = support::command::run_in(copied.path(), &["check", "config", "promforest.yml"]);
        assert_eq!((checked.status, &*checked.stderr), (0, ""), "{}", folder.display());
        assert!(!checked.stdout.contains("warning"), "{}: {}", folder.display(), checked.stdout);
    }
}

#[test]
fn prometheus_takes_the_configuration_of_the_sender() {
    let mut n_checked = 0;
    for folder in examples().iter().filter(|folder| folder.join("prometheus.yml").is_file()) {
        let copied = copy(folder);
        // Rules are named from where the example is in the repository.
        let text = fs::read_to_string(folder.join("prometheus.yml")).expect("a file");
        let text = text.replace("../../", &format!("{EXAMPLES}/../"));
        fs::write(copied.path().join("prometheus.yml"), text).expect("writable");
        for version in PrometheusVersion::ALL {
            let mut command = Command::new(version.promtool());
            command.args(["check", "config", "prometheus.yml"]).current_dir(copied.path());
            if name(folder) == "agent" {
                command.arg("--agent");
            }
            let output = command.output().expect("promtool runs");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{version}, {}: {said}", folder.display());
            n_checked += 1;
        }
    }
    assert!(n_checked >= 10, "{n_checked}");
}
