//! Members that join, and members that are gone for good.

use crate::cluster::{Cluster, N_PARTITIONS, TIMEOUT};
use crate::support::sidecar::Sidecar;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between rows under load.
const ROW_PAUSE: Duration = Duration::from_millis(200);

fn n_partitions(member: &Sidecar) -> f64 {
    member.metric("promforest_kafka_assigned_partitions")
}

/// Sends rows until the members have these numbers of partitions.
fn send_rows_until_assigned(cluster: &mut Cluster, members: &[&Sidecar], wanted: &[f64]) {
    let until = Instant::now() + TIMEOUT;
    loop {
        cluster.send_rows(1);
        let assigned: Vec<f64> = members.iter().map(|member| n_partitions(member)).collect();
        if assigned == wanted {
            return;
        }
        let tails: String = members.iter().map(|member| member.process.tail()).collect();
        assert!(Instant::now() < until, "{assigned:?}\n{tails}");
        thread::sleep(ROW_PAUSE);
    }
}

#[test]
fn members_join_under_load_and_take_over_from_those_that_are_gone() {
    let mut cluster = Cluster::start("zstd");
    let mut first = cluster.start_member("pf-0");
    cluster.send_rows(30);
    cluster.wait_for_scores(&mut [&mut first]);

    // The second has no windows: it fills them from the log.
    let mut second = cluster.start_member("pf-1");
    send_rows_until_assigned(&mut cluster, &[&first, &second], &[2.0, 2.0]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut first, &mut second]);
    assert!(second.metric("promforest_kafka_records_total") > 2.0 * 30.0, "{}", second.process.tail());

    // The first has still the groups that it gave away.
    second.kill();
    send_rows_until_assigned(&mut cluster, &[&first], &[f64::from(N_PARTITIONS)]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut first]);
    assert_eq!(first.metric_with("promforest_kafka_rebalances_total", &[("kind", "lost")]), 0.0);

    // The third has nothing.
    first.kill();
    let mut third = cluster.start_member("pf-2");
    send_rows_until_assigned(&mut cluster, &[&third], &[f64::from(N_PARTITIONS)]);
    cluster.send_rows(5);
    cluster.wait_for_scores(&mut [&mut third]);
    cluster.wait_for_commits(&mut third);
    cluster.check_no_conflict(&third);
}

/// A number in [0, 1) for each number (splitmix64, finalizer).
fn random(number: u64) -> f64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Three members are killed and ended in turn at random, and come back within their sessions or after. It takes a minute;
/// `PROMFOREST_KAFKA_MINUTES=10` takes longer.
#[test]
fn no_row_is_lost_while_members_are_killed_at_random() {
    const N_ROWS: u32 = 400;
    let minutes = env::var("PROMFOREST_KAFKA_MINUTES").map_or(1, |text| text.parse().expect("a number"));
    let pause = Duration::from_secs(60 * minutes) / N_ROWS;
    let mut cluster = Cluster::start("producer");
    let mut members: Vec<Sidecar> = (0..3).map(|i| cluster.start_member(&format!("pf-{i}"))).collect();
    // The row at which a member that is away comes back.
    let mut away: [Option<u32>; 3] = [None; 3];
    for row in 0..N_ROWS {
        cluster.send_rows(1);
        thread::sleep(pause);
        let turn = u64::from(row);
        for (member, back) in members.iter_mut().zip(&mut away) {
            if *back == Some(row) {
                *back = None;
                member.restart();
            }
        }
        let chosen = (random(3 * turn) * 3.0) as usize;
        if row % 20 == 10 && away[chosen].is_none() && away.iter().flatten().count() < 2 {
            match random(3 * turn + 1) < 0.3 {
                true => drop(members[chosen].process.terminate(TIMEOUT)),
                false => members[chosen].kill(),
            }
            away[chosen] = Some(row + 1 + (random(3 * turn + 2) * 60.0) as u32);
        }
    }
    for (member, _) in members.iter_mut().zip(&away).filter(|(_, back)| back.is_some()) {
        member.restart();
    }
    let mut running: Vec<&mut Sidecar> = members.iter_mut().collect();
    cluster.wait_for_scores(&mut running);
    for member in &members {
        assert_eq!(member.metric("promforest_remote_write_samples_conflicting_total"), 0.0);
    }
}
