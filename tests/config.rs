//! Configuration files, through `promforest check config`.
//!
//! In `tests/data/config`, `NAME.good.yml` is valid, and `NAME.good.txt` is what standard output
//! says of it; `NAME.bad.yml` is not, and `NAME.bad.txt` is what standard error says. `FILE` stands
//! for the path, and `FOLDER` for the folder that the file is in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn check_config(file: &Path) -> (Option<i32>, String, String) {
    let command = Command::new(env!("CARGO_BIN_EXE_promforest")).args(["check", "config"]).arg(file).output();
    let Output { status, stdout, stderr } = command.expect("the program runs");
    let folder = file.parent().map(|folder| folder.display().to_string()).filter(|folder| !folder.is_empty());
    let text = |bytes| {
        let text = String::from_utf8(bytes).expect("UTF-8").replace(&file.display().to_string(), "FILE");
        folder.as_ref().map_or_else(|| text.clone(), |folder| text.replace(folder, "FOLDER"))
    };
    (status.code(), text(stdout), text(stderr))
}

/// The files that this program can read: without the feature, those without a topic.
fn readable_files(ending: &str) -> Vec<(PathBuf, String)> {
    let is_readable = |(file, _): &(PathBuf, String)| {
        cfg!(feature = "kafka") || !fs::read_to_string(file).expect("a file").contains("kafka:")
    };
    files(ending).into_iter().filter(is_readable).collect()
}

/// The files of one ending, each with the text that belongs to it.
fn files(ending: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(ROOT).join("tests/data/config");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.to_string_lossy().ends_with(&format!(".{ending}.yml")))
        .collect();
    files.sort();
    let text = |path: &Path| fs::read_to_string(path.with_extension("txt")).expect("the text beside it");
    files.into_iter().map(|path| (path.clone(), text(&path))).collect()
}

#[test]
fn good_files_are_valid() {
    let files = readable_files("good");
    assert!(files.len() >= 4);
    for (file, text) in files {
        assert_eq!(check_config(&file), (Some(0), text, String::new()), "{}", file.display());
    }
}

#[test]
fn bad_files_report_every_error_with_its_line() {
    let files = readable_files("bad");
    assert!(files.len() >= 15);
    for (file, text) in files {
        let (status, stdout, stderr) = check_config(&file);
        assert_eq!(stderr, text, "{}", file.display());
        assert_eq!((status, &*stdout), (Some(1), ""), "{}", file.display());
        assert!(!stderr.contains("hunter2"), "{} shows a secret", file.display());
    }
}

/// The program says which keys it knows; every one of them is in a good and in a bad file.
#[test]
fn every_key_is_covered() {
    let texts = |ending: &str| -> String {
        files(ending).into_iter().map(|(file, _)| fs::read_to_string(file).expect("a file")).collect()
    };
    let (good, bad) = (texts("good"), texts("bad"));
    let file = Path::new(ROOT).join("tests/data/config/unknown-keys.bad.yml");
    let (_, _, stderr) = check_config(&file);
    let known_keys: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.split_once("known here: "))
        .flat_map(|(_, keys)| keys.split(", "))
        .collect();
    assert!(known_keys.len() >= 30, "{known_keys:?}");
    for key in known_keys {
        assert!(good.contains(&format!("{key}:")), "{key} is in no good file");
        assert!(bad.contains(&format!("{key}:")), "{key} is in no bad file");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    for (path, reason) in [
        ("does/not/exist.yml", "No such file or directory (os error 2)"),
        (ROOT, "Is a directory (os error 21)"),
    ] {
        let (status, stdout, stderr) = check_config(Path::new(path));
        assert_eq!((status, &*stdout), (Some(1), ""));
        assert_eq!(stderr, format!("promforest: cannot read the configuration file FILE: {reason}\n"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("latin1.yml");
    fs::write(&file, b"detectors: # \xe9\n").expect("writable");
    let (status, _, stderr) = check_config(&file);
    assert_eq!(status, Some(1));
    assert_eq!(
        stderr,
        "promforest: cannot read the configuration file FILE: stream did not contain valid UTF-8\n"
    );
}

#[test]
fn the_sidecar_refuses_to_start_with_a_bad_file() {
    let (file, text) = files("bad").remove(0);
    let output = Command::new(env!("CARGO_BIN_EXE_promforest"))
        .args(["--web.listen-address", "127.0.0.1:0", "--config.file"])
        .arg(&file)
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(stderr.replace(&file.display().to_string(), "FILE"), text);
}

#[test]
fn documented_configurations_are_valid() {
    for file in ["deploy/promforest.yml", "deploy/examples/victoriametrics/promforest.yml"] {
        let (status, stdout, stderr) = check_config(&Path::new(ROOT).join(file));
        assert_eq!(stderr, "", "{file}");
        assert_eq!(status, Some(0), "{stdout}");
    }

    let reference = fs::read_dir(Path::new(ROOT).join("deploy/reference")).expect("a folder");
    let pages =
        reference.map(|entry| entry.expect("an entry").path()).chain([Path::new(ROOT).join("README.md")]);
    let texts: Vec<String> = pages.map(|page| fs::read_to_string(page).expect("a page")).collect();
    let blocks = texts.iter().flat_map(|text| text.split("```yaml\n").skip(1));
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let configurations: Vec<&str> = blocks.filter(|block| block.contains("detectors:")).collect();
    assert!(!configurations.is_empty(), "a page shows a configuration");
    let folder = tempfile::tempdir().expect("a folder");
    for block in configurations {
        let file = folder.path().join("page.yml");
        fs::write(&file, block).expect("writable");
        let (status, _, stderr) = check_config(&file);
        assert_eq!((status, &*stderr), (Some(0), ""), "{block}");
    }
}

/// Both files claim to say the same as no file at all.
#[test]
fn the_annotated_files_hold_the_defaults() {
    use promforest::config::Config;
    let annotated = Config::load(&Path::new(ROOT).join("deploy/promforest.yml")).expect("valid");
    assert_eq!(annotated, Config::default());
}

#[test]
fn paths_begin_at_the_folder_of_the_file() {
    use promforest::config::Config;
    use promforest::http::SecretSource;
    use promforest::http::config::Auth;
    let folder = Path::new(ROOT).join("tests/data/config");
    let config = Config::load(&folder.join("http.good.yml")).expect("valid");
    let secret = SecretSource::File(folder.join("tls/secret"));
    assert_eq!(config.remote_write[0].http.tls.ca, Some(SecretSource::File(folder.join("tls/ca.pem"))));
    let basic = Auth::Basic { username: secret.clone(), password: secret.clone() };
    assert_eq!(config.remote_write[1].http.auth, basic);
    assert_eq!(secret.read().expect("the file exists"), "hunter2");
    let Auth::OAuth2(oauth2) = &config.remote_write[3].http.auth else { panic!("oauth2") };
    assert_eq!(
        (&oauth2.client_secret, &*oauth2.scopes),
        (&secret, &["metrics.write", "offline"].map(String::from)[..])
    );
}

#[test]
fn every_value_arrives_where_it_belongs() {
    use promforest::config::Config;
    use promforest::features::{Transform, rate::RateSemantics};
    use promforest::forest::{Contamination, ExtendedParams, MaxFeatures, MaxSamples};
    use std::time::Duration;
    let file = Path::new(ROOT).join("tests/data/config/everything.good.yml");
    let config = Config::load(&file).expect("valid");
    let seconds = Duration::from_secs;

    let write = &config.remote_write[0];
    assert_eq!(write.url.to_string(), "http://prometheus-a:9090/api/v1/write");
    assert_eq!(write.remote_timeout, seconds(10));
    assert_eq!(write.max_samples_per_send, 500);
    assert_eq!(write.batch_send_deadline, seconds(1));
    assert_eq!((write.min_backoff, write.max_backoff), (Duration::from_millis(100), seconds(30)));
    assert!(!write.retry_on_http_429);
    assert_eq!(write.sample_age_limit, seconds(90 * 60));
    assert_eq!(config.remote_write[1].remote_timeout, seconds(30));
    assert_eq!(config.history[0].url.to_string(), "http://prometheus-a:9090/api/v1/read");
    assert_eq!(config.history[0].remote_timeout, seconds(120));

    let [disk, memory, load] = &*config.detectors else { panic!("three detectors") };
    assert_eq!((&*disk.name, &*memory.name), ("disk", "memory"));
    assert_eq!((disk.matchers.len(), memory.matchers.len()), (2, 1));
    assert_eq!(disk.by, ["instance"]);
    assert_eq!(disk.transform, Transform::Rate { range_ms: 300_000, semantics: RateSemantics::V2 });
    assert_eq!(memory.transform, Transform::Value);
    assert_eq!((disk.window, disk.grace), (seconds(86_400), seconds(45)));
    assert_eq!(memory.grace, seconds(60), "two scrapes");
    let training = &disk.training;
    assert_eq!(
        (training.history, training.min_history, training.interval),
        (seconds(14 * 86_400), seconds(3 * 3600), seconds(12 * 3600))
    );
    let isolation_forest_params = |detector: &promforest::detector::Detector| match &detector.model {
        promforest::models::ModelParams::IsolationForest(params) => params.clone(),
        other => panic!("{other:?}"),
    };
    let model = isolation_forest_params(disk);
    assert_eq!(model.n_estimators.get(), 200);
    assert_eq!(Ok(model.max_samples), MaxSamples::share(0.5));
    assert_eq!(Ok(model.contamination), Contamination::share(0.01));
    assert_eq!(Ok(model.max_features), MaxFeatures::count(3));
    assert_eq!((model.bootstrap, model.random_state), (true, 42));
    // scikit-learn tells 1.0, all, from 1, one.
    assert_eq!(Ok(isolation_forest_params(memory).max_samples), MaxSamples::share(1.0));
    assert_eq!(Ok(isolation_forest_params(memory).max_features), MaxFeatures::share(1.0));
    let extended = ExtendedParams {
        n_estimators: 50.try_into().expect("above 0"),
        max_samples: MaxSamples::count(512).expect("above 0"),
        ndim: 8.try_into().expect("above 0"),
        random_state: 7,
    };
    assert_eq!(load.model, promforest::models::ModelParams::Extended(extended));
    let limits = Config::load(&file.with_file_name("limits.good.yml")).expect("valid");
    assert_eq!(Ok(isolation_forest_params(&limits.detectors[0]).max_samples), MaxSamples::count(1));
    assert_eq!(Ok(isolation_forest_params(&limits.detectors[0]).max_features), MaxFeatures::count(1));
}

/// An address that nobody configured is asked only where scores are written to.
#[test]
fn history_is_read_where_scores_are_written() {
    use promforest::config::Config;
    let urls = |text: &str| {
        let config = Config::parse(text).expect("valid");
        config.history.iter().map(|read| read.url.to_string()).collect::<Vec<_>>()
    };
    let local = ["http://localhost:9090/api/v1/read"];
    assert_eq!(urls(""), local);
    assert_eq!(urls("remote_write: [{url: 'http://localhost:9090/api/v1/write'}]"), local);
    assert!(urls("remote_write: [{url: 'http://mimir/api/v1/push'}]").is_empty());
    assert!(urls("remote_write: []").is_empty());
    let both = "remote_write: [{url: 'http://mimir/api/v1/push'}]\nremote_read: [{url: 'http://other/read'}]";
    assert_eq!(urls(both), ["http://other/read"]);
    let without = "history: [{url: 'http://vm:8428', api: export}]\n";
    assert_eq!(urls(without), ["http://vm:8428/"], "the local Prometheus is not asked beside it");
    let mixed = format!("remote_read: [{{url: 'http://other/read'}}]\n{without}");
    assert_eq!(urls(&mixed), ["http://vm:8428/", "http://other/read"]);
    let with_password = "remote_write: [{url: 'http://localhost:9090/api/v1/write', \
                         basic_auth: {username: scores, password: secret}}]";
    let config = Config::parse(with_password).expect("valid");
    assert_eq!(config.history[0].http, config.remote_write[0].http);
}
