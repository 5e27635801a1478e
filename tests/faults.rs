//! Every bad input and every fault has a test: the table in `tests/faults.md` is complete and names existing tests.

use std::fs;
use std::path::Path;

/// Rows of each kind.
const ROWS_PER_KIND: [(char, usize); 2] = [('B', 85), ('F', 45)];

#[test]
fn every_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/faults.md")).expect("the table");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| B") || line.starts_with("| F"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let numbers: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let expected = ROWS_PER_KIND
        .iter()
        .flat_map(|(kind, last)| (1..=*last).map(move |number| format!("{kind}{number}")));
    assert_eq!(numbers, expected.collect::<Vec<_>>(), "the rows of tests/faults.md");
    let mut wrong = Vec::new();
    for row in rows {
        let [number, what, tests] = row[..] else { panic!("{row:?} has other columns") };
        // Said with its reason.
        if tests.starts_with("not here: ") {
            continue;
        }
        for test in tests.split("<br>") {
            let named = test.trim_matches('`');
            let exists = named.split_once("::").is_some_and(|(file, function)| {
                fs::read_to_string(root.join(file))
                    .is_ok_and(|code| code.contains(&format!("fn {function}(")))
            });
            if !exists {
                wrong.push(format!("{number} ({what}): there is no {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "tests/faults.md:\n{}", wrong.join("\n"));
}
