//! `deploy/release.sh`: the files of a release, from the program under test.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::PROGRAM;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Files of both packages, besides the documents.
const FILES: [&str; 7] = [
    "/etc/promforest/promforest.yml",
    "/usr/bin/promforest",
    "/usr/lib/systemd/system/promforest.service",
    "/usr/lib/systemd/system/promforest.socket",
    "/usr/share/bash-completion/completions/promforest",
    "/usr/share/fish/vendor_completions.d/promforest.fish",
    "/usr/share/man/man1/promforest.1.gz",
];
const DOCUMENTS: &str = "/usr/share/doc/promforest";
/// The page that the alerts name.
const RUNBOOK: &str = "alerts.md";
/// Scripts of both packages: the name in a Debian package, and the file.
const SCRIPTS: [(&str, &str); 3] =
    [("postinst", "postinstall.sh"), ("prerm", "preremove.sh"), ("postrm", "postremove.sh")];
/// Size of the fixed part of a header of an RPM package, and of one of its index entries.
const RPM_INDEX_BYTES: usize = 16;

/// Standard output of a command that succeeds.
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn text(command: &mut Command) -> String {
    String::from_utf8(output(command)).expect("UTF-8")
}

/// Packs the program, and returns the files by name.
fn pack(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut command = Command::new(Path::new(ROOT).join("deploy/release.sh"));
    command.env("NFPM", support::nfpm()).env_remove("SOURCE_DATE_EPOCH");
    output(command.args(["--binary", PROGRAM, "--output"]).arg(folder));
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    paths.map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path)).collect()
}

/// The package has the files of every package, its own, and the documents.
fn check_files(paths: &[String], own: [&str; 1]) {
    let mut expected: Vec<&str> = FILES.iter().copied().chain(own).collect();
    expected.sort_unstable();
    let mut found: Vec<&str> =
        paths.iter().map(String::as_str).filter(|path| !path.starts_with(DOCUMENTS)).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    let runbook = format!("runbook_url: file://{DOCUMENTS}/{RUNBOOK}#");
    assert!(include_str!("../deploy/prometheus/promforest.rules.yml").contains(&runbook), "{runbook}");
    for name in [
        "README.md",
        RUNBOOK,
        "deploy/prometheus/promforest.rules.yml",
        "deploy/grafana/dashboards/fleet.json",
    ] {
        assert!(paths.contains(&format!("{DOCUMENTS}/{name}")), "{name} is not in {paths:?}");
    }
}

/// Files below a folder, as paths from it that begin with a slash.
fn files_below(folder: &Path) -> Vec<String> {
    let listing = text(Command::new("find").current_dir(folder).args([".", "-type", "f"]));
    listing.lines().map(|line| line.trim_start_matches('.').to_string()).collect()
}

/// Every program that the unit starts is a file of the package.
fn check_unit(folder: &Path) {
    let unit = folder.join("usr/lib/systemd/system/promforest.service");
    let service = fs::read_to_string(&unit).expect("a unit");
    let commands: Vec<&str> = service.lines().filter_map(|line| line.strip_prefix("Exec")).collect();
    assert!(commands.iter().any(|line| line.starts_with("Start=/usr/bin/promforest ")), "{service}");
    for line in commands.iter().filter(|line| !line.contains("=/bin/kill ")) {
        let program = line.split(['=', ' ']).nth(1).expect("a command");
        assert!(folder.join(&program[1..]).is_file(), "{line} is not in the package");
    }
    assert!(service.contains("--config.file=/etc/promforest/promforest.yml"), "{service}");
    if Path::new("/usr/bin/systemd-analyze").is_file() {
        verify_unit(folder);
    }
}

/// systemd accepts both units. What it needs beside them is copied from this machine.
fn verify_unit(folder: &Path) {
    let units = Path::new("usr/lib/systemd/system");
    let targets = fs::read_dir(Path::new("/").join(units)).expect("units of systemd");
    for target in targets.map(|entry| entry.expect("an entry").path()) {
        if target.extension().is_some_and(|extension| extension == "target") {
            fs::copy(&target, folder.join(units).join(target.file_name().expect("a name")))
                .expect("writable");
        }
    }
    fs::create_dir(folder.join("bin")).expect("writable");
    fs::copy("/bin/kill", folder.join("bin/kill")).expect("writable");
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg(format!("--root={}", folder.display()));
    let verified = command.args(["promforest.service", "promforest.socket"]).output().expect("it runs");
    let warnings = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && warnings.is_empty(), "{warnings}");
}

/// Every link of a page to a file of the archive leads to one.
fn check_links(folder: &Path) {
    for name in files_below(folder).iter().filter(|name| name.ends_with(".md")) {
        let page = folder.join(&name[1..]);
        let text = fs::read_to_string(&page).expect("a page");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            assert!(page.with_file_name(link).exists(), "{name}: {link}");
        }
    }
}

/// A script of the packages.
fn script(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join("deploy/packages").join(name)).expect("a script")
}

/// The paths in an RPM package: a lead of 96 bytes, two headers, and an archive in the format of cpio. The headers have
/// the scripts, and outside of the documents only the program may be executed.
fn rpm_files(package: &Path, folder: &Path) -> Vec<String> {
    let bytes = fs::read(package).expect("a package");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize;
    let end = |at: usize| at + RPM_INDEX_BYTES * (1 + number(at + 8)) + number(at + 12);
    let (headers, payload) = bytes.split_at(end(end(96).next_multiple_of(8)));
    for name in SCRIPTS.map(|(_, name)| name) {
        let script = script(name);
        assert!(headers.windows(script.len()).any(|bytes| bytes == script.as_bytes()), "no {name}");
    }
    let file = folder.join("payload.gz");
    fs::write(&file, payload).expect("writable");
    let archive = output(Command::new("gzip").arg("-dc").arg(file));
    let hexadecimal = |at: usize| {
        let digits = std::str::from_utf8(&archive[at..at + 8]).expect("digits");
        usize::from_str_radix(digits, 16).expect("a number")
    };
    let (mut paths, mut at) = (Vec::new(), 0);
    loop {
        assert!(archive[at..].starts_with(b"07070"), "no entry at byte {at}");
        let (mode, size, name_size) = (hexadecimal(at + 14), hexadecimal(at + 54), hexadecimal(at + 94));
        let name = String::from_utf8_lossy(&archive[at + 110..at + 109 + name_size]).into_owned();
        if name == "TRAILER!!!" {
            return paths;
        }
        if mode & 0o170_000 == 0o100_000 {
            let path = format!("/{}", name.trim_start_matches("./").trim_start_matches('/'));
            let is_executable = mode & 0o111 != 0;
            assert!(path.starts_with(DOCUMENTS) || is_executable == (path == FILES[1]), "{path}: {mode:o}");
            paths.push(path);
        }
        at = (at + 110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
    }
}

#[test]
fn packages_are_complete_and_the_same_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| pack(&folder.path().join(name)));
    assert_eq!(first.len(), 5, "{first:?}");
    assert!(first.keys().eq(second.keys()), "{first:?} {second:?}");
    for (name, path) in &first {
        let same = fs::read(path).expect("a file") == fs::read(&second[name]).expect("a file");
        assert!(same, "{name} differs from run to run");
    }
    output(
        Command::new("sha256sum").args(["--check", "sha256sums"]).current_dir(folder.path().join("first")),
    );
    let file = |end: &str| first.iter().find(|(name, _)| name.ends_with(end)).expect(end).1;

    let deb = folder.path().join("deb");
    output(Command::new("dpkg-deb").arg("--extract").args([file(".deb"), &deb]));
    check_files(&files_below(&deb), ["/usr/share/zsh/vendor-completions/_promforest"]);
    check_unit(&deb);
    let version = format!("promforest {} ", env!("CARGO_PKG_VERSION"));
    let program = deb.join("usr/bin/promforest");
    assert!(text(Command::new(&program).arg("--version")).starts_with(&version));
    let config = deb.join("etc/promforest/promforest.yml");
    output(Command::new(&program).args(["check", "config"]).arg(config));
    let field = |name| text(Command::new("dpkg-deb").arg("--field").arg(file(".deb")).arg(name));
    assert_eq!(field("Version").trim(), env!("CARGO_PKG_VERSION"));
    let conffiles = text(Command::new("dpkg-deb").args(["--info"]).arg(file(".deb")).arg("conffiles"));
    assert_eq!(conffiles.trim(), "/etc/promforest/promforest.yml");
    for (name, path) in SCRIPTS {
        let packed = text(Command::new("dpkg-deb").arg("--info").arg(file(".deb")).arg(name));
        assert_eq!(packed, script(path));
    }
    let executable = ["etc", "usr", "-type", "f", "-perm", "/111", "-not", "-path", "usr/share/doc/*"];
    assert_eq!(text(Command::new("find").current_dir(&deb).args(executable)), "usr/bin/promforest\n");

    let mut rpm = rpm_files(file(".rpm"), folder.path());
    for name in ["LICENSE", "THIRD-PARTY"] {
        let path = format!("/usr/share/licenses/promforest/{name}");
        assert!(rpm.contains(&path), "{path} is not in {rpm:?}");
        rpm.retain(|other| *other != path);
    }
    check_files(&rpm, ["/usr/share/zsh/site-functions/_promforest"]);

    let archive = folder.path().join("archive");
    fs::create_dir(&archive).expect("writable");
    let unpack = ["--strip-components=1", "-xzf"];
    output(Command::new("tar").arg("-C").arg(&archive).args(unpack).arg(file(".tar.gz")));
    assert!(text(Command::new(archive.join("promforest")).arg("--version")).starts_with(&version));
    for name in ["LICENSE", "deploy/promforest.yml", "completions/_promforest", "promforest.1"] {
        assert!(archive.join(name).is_file(), "no {name}");
    }
    check_links(&archive);
    let licences = fs::read_to_string(archive.join("THIRD-PARTY")).expect("licences");
    for part in ["\nserde 1.", "\nring 0.", "Permission is hereby granted", "Apache License"] {
        assert!(licences.contains(part), "no {part:?} in the licences");
    }
}
