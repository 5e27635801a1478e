//! Links between the documents lead somewhere, each alert has its runbook, the first page stays short, and the image is built
//! from all that the program includes.

use regex::Regex;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Folders with documents; build output and dependencies are not among them.
const FOLDERS: [&str; 21] = [
    "",
    ".github",
    "deploy",
    "deploy/examples",
    "deploy/examples/agent",
    "deploy/examples/grafana-cloud",
    "deploy/examples/kafka",
    "deploy/examples/kube-prometheus-stack",
    "deploy/examples/mimir",
    "deploy/examples/mimir-tenants",
    "deploy/examples/otel-collector",
    "deploy/examples/prometheus",
    "deploy/examples/thanos",
    "deploy/examples/victoriametrics",
    "deploy/kubernetes",
    "deploy/mixin",
    "deploy/mlflow",
    "deploy/reference",
    "tests",
    "tests/data/netlab",
    "tests/quality/netlab",
];
const MAX_README_WORDS: usize = 900;

fn documents() -> Vec<PathBuf> {
    let folders = FOLDERS.iter().map(|folder| Path::new(ROOT).join(folder));
    let entries = folders.flat_map(|folder| fs::read_dir(folder).expect("a folder of documents"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The anchor that a heading gets: lower case, hyphens for spaces, and no punctuation.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The targets of Markdown links in a page, without those to other servers.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

fn has_anchor(page: &Path, name: &str) -> bool {
    let text = fs::read_to_string(page).expect("a page");
    text.lines().filter(|line| line.starts_with('#')).any(|heading| anchor(heading) == name)
}

#[test]
fn links_lead_somewhere() {
    let mut n_links = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        let page = fs::read_to_string(&document).expect("a page");
        for link in links(&page) {
            n_links += 1;
            let (path, name) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a folder").join(path),
            };
            if !target.exists() || !(name.is_empty() || has_anchor(&target, name)) {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(n_links > 30, "{n_links} links");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// Each alert has a heading in the runbook that its `runbook_url` names, with the same four points; no heading is left over.
#[test]
fn each_alert_has_its_runbook() {
    const RUNBOOK: &str = "deploy/reference/alerts.md";
    const INSTALLED: &str = "/usr/share/doc/promforest/alerts.md";
    const POINTS: [&str; 4] = ["Means", "Look at", "Do", "Silence"];
    let rules = read("deploy/prometheus/promforest.rules.yml");
    let values = |key: &str| {
        let lines =
            rules.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key));
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    let alerts = values("alert: ");
    assert!(alerts.len() > 10, "{alerts:?}");
    let urls = alerts.iter().map(|alert| format!("file://{INSTALLED}#{}", alert.to_lowercase()));
    assert_eq!(values("runbook_url: "), urls.collect::<Vec<_>>(), "one for each alert, in their order");

    let page = read(RUNBOOK);
    let mut sections: Vec<&str> = page.split("\n## ").skip(1).collect();
    let last = sections.pop().expect("sections");
    assert!(last.starts_with("How a deviation becomes an incident\n"), "{last}");
    let headings: Vec<&str> = sections.iter().filter_map(|section| section.lines().next()).collect();
    assert_eq!(headings, alerts, "the headings of {RUNBOOK}");
    for section in sections {
        let points = section.lines().filter_map(|line| line.strip_prefix("- **")?.split_once(":**"));
        assert_eq!(points.map(|(point, _)| point).collect::<Vec<_>>(), POINTS, "{section}");
    }
    let install = format!("{RUNBOOK} {INSTALLED}");
    assert!(read("deploy/README.md").contains(&install), "deploy/README.md does not install {install}");
}

#[test]
fn the_readme_is_short() {
    let readme = read("README.md");
    let n_words = readme.split_whitespace().count();
    assert!(n_words <= MAX_README_WORDS, "README.md has {n_words} words, the limit is {MAX_README_WORDS}");
}

/// Paths below the repository of the files that the sources include.
fn included_files() -> Vec<PathBuf> {
    let include = Regex::new(r#"include_(?:str|bytes)!\(\s*"([^"]+)""#).expect("a valid regex");
    let root = Path::new(ROOT).canonicalize().expect("the repository");
    let (mut files, mut folders) = (Vec::new(), vec![root.join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                files.extend(include.captures_iter(&text).map(|found| {
                    let file = folder.join(&found[1]).canonicalize().expect("an included file");
                    file.strip_prefix(&root).expect("below the repository").to_path_buf()
                }));
            }
        }
    }
    files
}

#[test]
fn the_image_is_built_with_the_included_files() {
    let ignored = read("deploy/Dockerfile.dockerignore");
    let sent: Vec<&Path> = ignored.lines().filter_map(|line| line.strip_prefix('!')).map(Path::new).collect();
    let files = included_files();
    assert!(files.iter().any(|file| !file.starts_with("src")), "{files:?}");
    let missing: Vec<_> =
        files.iter().filter(|file| !sent.iter().any(|path| file.starts_with(path))).collect();
    assert!(missing.is_empty(), "deploy/Dockerfile.dockerignore leaves out {missing:?}");
}
