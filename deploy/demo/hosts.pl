#!/usr/bin/env perl
# Simulated hosts with the network counters of node_exporter: their past as OpenMetrics, then their present over HTTP.
#
#   hosts.pl PORT FILE DAYS REPLAYED_HOURS
#
# Writes DAYS of samples that end now to FILE, which appears when it is complete, and then serves each host at
# http://127.0.0.1:PORT/HOST: the same counters go on. Incidents are printed to standard output, one a line.
# FILE also has one decision of 0 for each host, REPLAYED_HOURS before the end: promforest goes on behind the newest decision.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use POSIX qw(floor strftime);
use Time::HiRes qw(time);

@ARGV == 4 or die "usage: hosts.pl PORT FILE DAYS REPLAYED_HOURS\n";
my ($port, $file, $days, $replayed_hours) = @ARGV;
my $interval = 15;           # seconds between two samples
my $step = 5;                # seconds of a constant rate: at each time of a sample, a minute has as many of them
my $live_pause = 900;        # seconds from the beginning of a live incident to that of the next one; each is open for half an hour
my $live_length = 105;       # seconds of a live incident
my $first_live = 120;        # seconds from the first scrape to the first live incident
my $pi = atan2(0, -1);
srand(1);

# Bytes received in a second at the busiest time, bytes sent for each of them, bytes of a packet.
my %hosts = (
    'web-1' => { bytes => 4e6, sent => 2.5, size => 800 },
    'web-2' => { bytes => 3e6, sent => 2.4, size => 820 },
    'db-1' => { bytes => 6e6, sent => 1.2, size => 1100 },
    'cache-1' => { bytes => 2e6, sent => 6.0, size => 600 },
    'mail-1' => { bytes => 5e5, sent => 0.8, size => 900 },
);
my @names = ('web-1', 'web-2', 'db-1', 'cache-1', 'mail-1');
# Factors of received bytes, received packets, sent bytes, sent packets.
my %kinds = (
    'a flood of incoming traffic'      => [9, 9, 1.3, 1.5],
    'a storm of small packets'         => [1.2, 14, 1.1, 9],
    'a copy of its data to elsewhere'  => [1.1, 2, 10, 10],
    'hardly any traffic'               => [0.02, 0.02, 0.02, 0.02],
);
my @live = ('a flood of incoming traffic', 'a storm of small packets', 'a copy of its data to elsewhere');

my $end = $interval * floor(time / $interval);
my $begin = $end - 86400 * $days;
# [host, kind, first second, last second]
my @incidents = map { [$_->[0], $_->[1], $end - 3600 * $_->[2], $end - 3600 * $_->[2] + $_->[3]] } (
    ['web-2', 'a storm of small packets', 101, 900],
    ['db-1', 'a flood of incoming traffic', 60, 600],
    ['web-1', 'a flood of incoming traffic', 20, 600],
    ['db-1', 'a storm of small packets', 9, 900],
    ['web-2', 'hardly any traffic', 3, 720],
);

# A number with mean 0 and variance 1, from -3 to 3.
sub noise { 2 * (rand() + rand() + rand()) - 3 }

# Share of the traffic of the busiest time: least at 2:00 UTC, most at 14:00.
sub share_of_day {
    my ($second) = @_;
    my $wave = 0.5 - 0.5 * cos(2 * $pi * ($second / 3600 - 2) / 24);
    return 0.3 + 0.7 * $wave ** 1.5;
}

# Received bytes and packets, sent bytes and packets in the second.
sub rates {
    my ($host, $second) = @_;
    my $of = $hosts{$host};
    # Mean 0 and variance 1; half of a deviation is left after three minutes.
    $_ = 0.98 * ($_ // 0) + 0.2 * noise() for @{$of->{slow}}{'in', 'out'};
    my $wave = $of->{bytes} * share_of_day($second);
    my $in = $wave * exp(0.08 * $of->{slow}{in} + 0.04 * noise());
    my $out = $wave * $of->{sent} * exp(0.08 * $of->{slow}{out} + 0.04 * noise());
    my @rates = ($in, $in / $of->{size} * exp(0.03 * noise()), $out, $out / $of->{size} * exp(0.03 * noise()));
    for my $incident (@incidents) {
        my ($name, $kind, $from, $to) = @$incident;
        next if $name ne $host || $second < $from || $second >= $to;
        $rates[$_] *= $kinds{$kind}[$_] for 0 .. 3;
    }
    return \@rates;
}

my @metrics = map { "node_network_$_" } 'receive_bytes_total', 'receive_packets_total', 'transmit_bytes_total',
    'transmit_packets_total';
my ($now, %totals, %rates) = ($begin);
for my $host (@names) { $totals{$host} = [0, 0, 0, 0]; $rates{$host} = rates($host, $begin) }

# The counters of the next step.
sub advance {
    for my $host (@names) {
        $totals{$host}[$_] += $step * $rates{$host}[$_] for 0 .. 3;
        $rates{$host} = rates($host, $now + $step);
    }
    $now += $step;
}

sub write_history {
    my $from = $end - 3600 * $replayed_hours;
    open(my $out, '>', "$file.part") or die "$file.part: $!\n";
    # Up to now, that is to the time at which it is written, so that the first scrape follows without a gap.
    while ($now < time) {
        for my $host ($now % $interval == 0 ? @names : ()) {
            printf $out qq(%s{job="node",instance="%s",device="eth0"} %.0f %d\n), $metrics[$_], $host, $totals{$host}[$_], $now
                for 0 .. 3;
            printf $out qq(%s{detector="node_network",job="node",instance="%s"} 0 %d\n), 'node_network_anomaly', $host, $now
                if $now <= $from && $from < $now + $interval;
        }
        advance();
    }
    print $out "# EOF\n";
    close($out) or die "$file.part: $!\n";
    rename("$file.part", $file) or die "$file: $!\n";
}

# The page of a host; whole packets and bytes.
sub page {
    my ($host, $second) = @_;
    my $page = '';
    for (0 .. 3) {
        my $total = $totals{$host}[$_] + ($second - $now) * $rates{$host}[$_];
        $page .= sprintf(qq(# TYPE %s counter\n%s{device="eth0"} %.0f\n), $metrics[$_], $metrics[$_], $total);
    }
    return $page;
}

# Plans the next live incident once the one before has begun.
my ($next_live, $n_live) = (undef, 0);
sub plan_incident {
    my ($second) = @_;
    $next_live //= $second + $first_live;
    return if $second < $next_live;
    my $host = $names[$n_live % @names];
    my $kind = $live[$n_live % @live];
    my $to = $second + $live_length;
    push @incidents, [$host, $kind, $second, $to];
    printf "%s  simulated on %s until %s: %s\n", strftime('%T', localtime $second), $host,
        strftime('%T', localtime $to), $kind;
    ($next_live, $n_live) = ($second + $live_pause, $n_live + 1);
}

$| = 1;
$SIG{PIPE} = 'IGNORE';
write_history();
my $listener = IO::Socket::INET->new(Listen => 16, LocalAddr => "127.0.0.1:$port", ReuseAddr => 1)
    or die "127.0.0.1:$port: $@\n";
while (my $client = $listener->accept()) {
    my $head = '';
    while ($head !~ /\r\n\r\n/ && IO::Select->new($client)->can_read(1)) {
        sysread($client, $head, 4096, length $head) or last;
    }
    my $second = time;
    plan_incident($second);
    advance() while $now + $step <= $second;
    my ($host) = $head =~ m{^GET /(\S+) };
    my $page = defined $host && $hosts{$host} ? page($host, $second) : '';
    my $status = $page ? '200 OK' : '404 Not Found';
    print $client "HTTP/1.1 $status\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: ", length $page,
        "\r\nConnection: close\r\n\r\n$page";
    close $client;
}
