use super::*;

#[test]
fn names_of_groups_are_distinct() {
    let by = |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
    let name_of = |names: &[&str], labels: &[(&str, &str)]| {
        group_model_name("net", &by(names), None, &Labels::new(labels.iter().copied()).expect("valid"))
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

/// A name without a hash may end like one with it.
#[test]
fn a_tenant_cannot_choose_the_name_of_a_model_of_another() {
    let of_job = |tenant: Option<&str>, job: &str| {
        let labels = [("job", job)].into_iter().chain(tenant.map(|id| ("tenant", id)));
        let by = ["tenant".to_string(), "job".to_string()];
        let by = if tenant.is_some() { &by[..] } else { &by[1..] };
        let tenant = tenant.map(|id| id.parse().expect("an ID"));
        group_model_name("net", by, tenant.as_ref(), &Labels::new(labels).expect("valid"))
    };
    let hashed = of_job(None, "a:b");
    let job = hashed.strip_prefix("net.").expect("a prefix");
    assert_eq!(of_job(None, job), hashed, "one operator chooses all of them");
    let hashed = of_job(Some("t"), "a");
    assert!(hashed.starts_with("net.a.t-"), "{hashed}");
    assert_ne!(of_job(Some("t-0"), "a"), of_job(Some("t"), "a"));
    assert_eq!(hashed.len(), "net.a.t-".len() + TENANT_HASH_LENGTH);
    assert!(
        of_job(Some(&"t".repeat(150)), &"j".repeat(300)).len() <= MAX_NAME_LENGTH + 1 + TENANT_HASH_LENGTH
    );
    assert_ne!(of_job(Some("t"), &"j".repeat(300)), of_job(Some("u"), &"j".repeat(300)));
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
