use super::*;

#[test]
fn names_of_groups_are_distinct() {
    let by = |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
    let name_of = |names: &[&str], labels: &[(&str, &str)]| {
        group_model_name("net", &by(names), &Labels::new(labels.iter().copied()).expect("valid"))
    };
    let of_instance =
        |instance: &str| name_of(&["job", "instance"], &[("job", "node"), ("instance", instance)]);
    assert_eq!(of_instance("web1"), "net.web1.node");
    let port = of_instance("web1:9100");
    assert!(port.starts_with("net.web1_9100.node-"), "{port}");
    assert_ne!(port, of_instance("web1_9100"));
    assert_ne!(port, of_instance("web1;9100"));
    assert!(of_instance(&"ü".repeat(500)).len() < 255);
    // Of targets that lack a label of `by`, or differ in one that the name leaves out.
    let one_label = |name: &str| name_of(&["job", "instance"], &[(name, "a")]);
    assert_ne!(one_label("job"), one_label("instance"));
    let of_metric = |metric: &str| name_of(&["__name__", "job"], &[(METRIC_NAME, metric), ("job", "a")]);
    assert_ne!(of_metric("rx"), of_metric("tx"));
}

#[test]
fn rolls_back_to_the_previous_version() {
    let version = |number, promoted_ms, rolled_back| ModelVersion {
        number,
        promoted_ms,
        rolled_back,
        ..ModelVersion::default()
    };
    let versions = [
        version(1, Some(100), false),
        version(2, None, false),
        version(3, Some(200), true),
        version(4, Some(300), false),
        version(5, Some(400), false),
    ];
    assert_eq!(previous_version(&versions, 5), Some(4));
    assert_eq!(previous_version(&versions, 4), Some(1), "3 was rolled back");
    assert_eq!(previous_version(&versions, 1), None);
    // A user moved the alias to a version without a promotion.
    assert_eq!(previous_version(&versions, 2), Some(5));
}
