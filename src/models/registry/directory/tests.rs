use super::*;
use crate::features::rate::RateSemantics;
use crate::models::Model;
use crate::models::registry::{CHALLENGER, CHAMPION, Registry};

fn model() -> Model {
    crate::models::artifact::tests::sample_model()
}

fn registry(keep_versions: usize) -> (tempfile::TempDir, Directory) {
    registry_with(Retention { versions: keep_versions, ..Retention::default() })
}

fn registry_with(keep: Retention) -> (tempfile::TempDir, Directory) {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::new(folder.path().join("models"), keep);
    (folder, directory)
}

fn numbers(directory: &Directory) -> Vec<u64> {
    directory.versions("net").expect("read").iter().map(|version| version.number).collect()
}

fn register(directory: &Directory, name: &str) -> u64 {
    let new_version = NewVersion { model: &model(), report: Some("<html>"), note: "a note".into() };
    directory.register(name, &new_version).expect("registered")
}

#[tokio::test]
async fn versions_aliases_and_rollback() {
    let (_folder, directory) = registry(9);
    let registry = Registry::Directory(directory.clone());
    assert!(registry.aliases("").await.expect("nothing there is no error").is_empty());
    assert!(registry.versions("net").await.expect("none").is_empty());
    for expected in 1..=3 {
        assert_eq!(register(&directory, "net"), expected);
        registry.promote("net", CHAMPION, expected).await.expect("promoted");
    }
    register(&directory, "network");
    assert_eq!(registry.aliases("net").await.expect("read")["net"].version(CHAMPION), Some(3));
    assert_eq!(
        registry.aliases_of(["net", "net.group"]).await.expect("read")["net"].version(CHAMPION),
        Some(3)
    );
    assert!(registry.aliases_of(["ne", "net.group"]).await.expect("read").is_empty());
    assert_eq!(registry.load("net", 3, RateSemantics::V3).await.expect("a model"), model());
    registry.promote("net", CHALLENGER, 2).await.expect("beside it");
    assert_eq!(registry.roll_back("net", CHAMPION).await.expect("back"), (3, 2));
    assert_eq!(registry.roll_back("net", CHAMPION).await.expect("back"), (2, 1));
    let last = registry.roll_back("net", CHAMPION).await.expect_err("the first").to_string();
    assert_eq!(last, "model net has no version to roll back to: none was promoted before version 1");
    let none = registry.roll_back("network", CHAMPION).await.expect_err("no alias").to_string();
    assert_eq!(none, "model network has no alias champion");
    assert_eq!(registry.remove_alias("net", CHALLENGER).await.expect("removed"), 2);
    let aliases = registry.aliases_of(["net"]).await.expect("read");
    assert_eq!(aliases["net"].versions, BTreeMap::from([(CHAMPION.to_string(), 1)]));
    let none = registry.remove_alias("other", CHAMPION).await.expect_err("no model").to_string();
    assert_eq!(none, "model other has no alias champion");
    assert!(!directory.root().join("other").exists(), "the call creates no folder");
    let missing = registry.promote("net", CHAMPION, 9).await.expect_err("missing").to_string();
    assert_eq!(missing, "model net has no version 9");
    let page = fs::read_to_string(directory.root().join("net/2/report.html")).expect("the report");
    assert_eq!(page, "<html>");
}

#[tokio::test]
async fn a_rollback_stays_until_a_person_promotes() {
    let (_folder, directory) = registry(9);
    let open = || Registry::Directory(Directory::new(directory.root().into(), Retention::default()));
    let train = async || {
        let version = register(&directory, "net");
        let pinned = open().promote_trained("net", CHAMPION, version).await.expect("registered");
        let aliases = open().aliases_of(["net"]).await.expect("read").remove("net").expect("the model");
        (version, pinned, aliases.version(CHAMPION), aliases.version(CHALLENGER))
    };
    assert_eq!(train().await, (1, None, Some(1), None));
    assert_eq!(train().await, (2, None, Some(2), None));
    open().roll_back("net", CHAMPION).await.expect("back");
    for version in 3..=5 {
        assert_eq!(train().await, (version, Some(1), Some(1), Some(version)));
    }
    open().promote("net", CHAMPION, 5).await.expect("promoted");
    assert_eq!(train().await, (6, None, Some(6), None), "a champion is no challenger");

    open().promote("net", CHAMPION, 2).await.expect("promoted");
    assert_eq!(
        train().await,
        (7, Some(2), Some(2), Some(7)),
        "a promotion of an older version is a rollback"
    );
    assert_eq!(open().unpin("net", CHAMPION).await.expect("released"), 2);
    assert_eq!(train().await, (8, None, Some(8), None));

    assert_eq!(open().pin("net", CHAMPION).await.expect("pinned"), 8);
    assert_eq!(train().await, (9, Some(8), Some(8), Some(9)));
    open().replace_unusable("net", CHAMPION, 9).await.expect("promoted");
    assert_eq!(train().await, (10, Some(9), Some(9), Some(10)), "the pin goes over to the new version");
    assert!(open().pin("other", CHAMPION).await.is_err(), "it has no alias");
}

#[tokio::test]
async fn an_alias_that_another_program_moves_back_is_pinned() {
    let (_folder, directory) = registry(9);
    let registry = Registry::Directory(directory.clone());
    for version in 1..=2 {
        register(&directory, "net");
        registry.promote("net", CHAMPION, version).await.expect("promoted");
    }
    let state = directory.root().join("net/registry.json");
    let text = fs::read_to_string(&state).expect("written");
    fs::write(&state, text.replace("\"champion\": 2\n  },\n  \"pinned", "\"champion\": 1\n  },\n  \"pinned"))
        .expect("written");
    assert_eq!(registry.pinned_version("net", CHAMPION).await.expect("read"), Some(1));
}

#[test]
fn changing_an_unregistered_model_creates_no_folder() {
    let (_folder, directory) = registry(9);
    for refused in [directory.promote("other", CHAMPION, 1), directory.roll_back("other", CHAMPION, 2, 1)] {
        assert_eq!(refused.expect_err("refused").to_string(), "model other has no version 1");
    }
    assert!(!directory.root().exists());
}

#[test]
fn names_stay_inside_of_the_directory() {
    let (_folder, directory) = registry(9);
    for bad in ["", "..", "../up", "a/b", ".hidden", "a:b", "a\0b"] {
        let error = directory.versions(bad).expect_err("refused").to_string();
        assert!(error.contains("cannot name a model or an alias"), "{error}");
    }
}

#[test]
fn old_versions_without_an_alias_are_pruned() {
    let (_folder, directory) = registry(2);
    register(&directory, "net");
    directory.promote("net", CHAMPION, 1).expect("promoted");
    for _ in 0..4 {
        register(&directory, "net");
    }
    assert_eq!(numbers(&directory), [1, 4, 5], "the champion and the newest two");
    assert!(!directory.root().join("net/2").exists());
    assert!(directory.files("net", 2).is_err());
}

#[test]
fn old_versions_are_pruned_by_their_size_too() {
    let size = |directory: &Directory, version: u64| {
        folder_bytes(&directory.root().join("net").join(version.to_string())).expect("read") as usize
    };
    let (_folder, measured) = registry(9);
    register(&measured, "net");
    let bytes = size(&measured, 1);
    for (limit, kept) in [(3 * bytes, vec![3, 4, 5]), (3 * bytes - 1, vec![4, 5]), (1, vec![5])] {
        let (_folder, directory) = registry_with(Retention { bytes: limit, ..Retention::default() });
        (1..=5).for_each(|version| assert_eq!(register(&directory, "net"), version));
        assert_eq!(numbers(&directory), kept, "{limit} of {bytes} bytes a version");
        assert_eq!(size(&directory, 1), 0);
    }
}

#[tokio::test]
async fn the_aliases_of_named_models_are_read_alone() {
    let (_folder, directory) = registry(9);
    let registry = Registry::Directory(directory.clone());
    let names = ["net.a", "net.b", "absent"].map(String::from).into();
    assert!(registry.list_aliases(&names).await.expect("no directory yet").aliases.is_empty());
    for model in ["net.a", "net.b", "net.other"] {
        register(&directory, model);
    }
    for damaged in ["net.b", "net.other"] {
        fs::write(directory.root().join(damaged).join("registry.json"), "{").expect("written");
    }
    let listing = registry.list_aliases(&names).await.expect("read");
    assert_eq!(listing.aliases.into_keys().collect::<Vec<_>>(), ["net.a"]);
    assert_eq!(listing.unreadable.into_keys().collect::<Vec<_>>(), ["net.b"]);
    assert!(registry.aliases("net").await.is_err(), "it reads them all");
    fs::remove_dir_all(directory.root()).expect("removed");
    fs::write(directory.root(), "").expect("written");
    assert!(registry.list_aliases(&names).await.is_err(), "a file in place of the directory");
}

#[test]
fn writers_of_several_threads_are_serialized() {
    let (_folder, directory) = registry(100);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| assert_ne!(register(&directory, "net"), 0)));
        }
    });
    assert_eq!(numbers(&directory), (1..=20).collect::<Vec<u64>>());
}

#[test]
fn orphans_of_a_dead_writer_are_removed() {
    let (_folder, directory) = registry(9);
    register(&directory, "net");
    let folder = directory.root().join("net");
    for orphan in ["7", ".2.4711.tmp"] {
        fs::create_dir_all(folder.join(orphan)).expect("made");
    }
    fs::write(folder.join("registry.tmp"), "{").expect("written");
    assert_eq!(directory.versions("net").expect("read").len(), 1, "strays are not seen");
    assert_eq!(register(&directory, "net"), 2);
    assert!(!folder.join("7").exists() && !folder.join(".2.4711.tmp").exists());
}

#[test]
fn a_corrupt_registry_file_is_an_error_and_is_left_unchanged() {
    let (_folder, directory) = registry(9);
    register(&directory, "net");
    let state = directory.root().join("net/registry.json");
    fs::write(&state, "{").expect("written");
    let error = directory.versions("net").expect_err("damaged").to_string();
    assert!(error.ends_with("net/registry.json cannot be read"), "{error}");
    let new_version = NewVersion { model: &model(), report: None, note: String::new() };
    assert!(directory.register("net", &new_version).is_err());
    assert_eq!(fs::read_to_string(&state).expect("still there"), "{");
}

#[test]
fn what_root_writes_belongs_to_the_owner_of_the_folder() {
    let (folder, directory) = registry(9);
    let is_root = rustix::process::geteuid().is_root();
    let owner = if is_root { 65_534 } else { rustix::process::geteuid().as_raw() };
    let group = is_root.then_some(owner);
    unix::fs::chown(folder.path(), Some(owner), group).expect("an owner");
    register(&directory, "net");
    directory.update_periods(|_| ()).expect("written");
    let mut paths = vec![folder.path().to_path_buf()];
    let mut n_files = 0;
    while let Some(path) = paths.pop() {
        let metadata = path.metadata().expect("there");
        assert_eq!(metadata.uid(), owner, "{}", path.display());
        n_files += usize::from(metadata.is_file());
        let entries = fs::read_dir(&path).into_iter().flatten();
        paths.extend(entries.map(|entry| entry.expect("readable").path()));
    }
    assert!(n_files > 5, "{n_files}");
}
