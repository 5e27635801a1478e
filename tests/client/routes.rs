//! Proxies and redirects.

use super::*;

#[tokio::test]
async fn a_proxy_passes_on_what_is_not_encrypted() {
    let proxy = Server::always_ok(None).await;
    let client = client_with(&format!(
        "proxy_url: http://me:hunter2@{}\nno_proxy: 127.0.0.1\nbasic_auth: {{username: a}}",
        proxy.address
    ));
    get_ok(&client, &"http://prometheus.internal:9090/a?b=c".parse().expect("a URL")).await;
    let seen = proxy.requests().remove(0);
    assert_eq!(seen.line, "GET http://prometheus.internal:9090/a?b=c");
    assert_eq!(seen.header("host"), Some("prometheus.internal:9090"));
    // printf me:hunter2 | base64; printf a: | base64
    assert_eq!(seen.header(PROXY_AUTHORIZATION), Some("Basic bWU6aHVudGVyMg=="));
    assert_eq!(seen.header(AUTHORIZATION), Some("Basic YTo="));

    let near = Server::always_ok(None).await;
    get_ok(&client, &near.http()).await;
    assert_eq!((near.requests().len(), proxy.requests().len()), (1, 1));
    assert_eq!(near.requests()[0].header(PROXY_AUTHORIZATION), None);
}

#[tokio::test]
async fn a_proxy_opens_tunnels_for_what_is_encrypted() {
    let authority = Authority::new("authority");
    let server = Server::always_ok(authority.identity("prometheus.internal").tls()).await;
    let folder = folder(&[("ca.pem", &authority.pem)]);
    let client_through = |proxy: SocketAddr| {
        client(
            folder.path(),
            &format!(
                "tls_config: {{ca_file: ca.pem}}\nproxy_url: http://me:hunter2@{proxy}\n\
                 proxy_connect_header: {{X-Key: [one, two]}}\nbasic_auth: {{username: a}}"
            ),
        )
    };
    let url = "https://prometheus.internal:9090/a".parse().expect("a URL");
    let (proxy, connect_heads) = start_tunnel_proxy(Ok(server.address)).await;
    assert_eq!(get_ok(&client_through(proxy), &url).await, "fine");
    let connect_heads = connect_heads.lock().expect("no panic").join("");
    assert!(connect_heads.starts_with("CONNECT prometheus.internal:9090 HTTP/1.1\r\n"), "{connect_heads}");
    let connect_heads = connect_heads.to_lowercase();
    for line in ["proxy-authorization: basic bwu6ahvudgvymg==", "x-key: one", "x-key: two"] {
        assert!(connect_heads.contains(&format!("{line}\r\n")), "{connect_heads}");
    }
    assert!(!connect_heads.contains("\r\nauthorization:"), "{connect_heads}");
    let seen = server.requests().remove(0);
    assert_eq!((&*seen.line, seen.header(PROXY_AUTHORIZATION)), ("GET /a", None));
    assert_eq!(seen.header(AUTHORIZATION), Some("Basic YTo="));

    let (proxy, _) = start_tunnel_proxy(Err("403 Forbidden")).await;
    let message = get_error(&client_through(proxy), &url).await;
    assert!(message.contains(&format!("through the proxy http://{proxy}/: tunnel error")), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn a_get_follows_redirects() {
    let other = Server::start(None, |_, _| response_with(200, "there")).await;
    let there = other.url("http", "127.0.0.1", "/there");
    let server = Server::start(None, move |_, seen| match seen.line.as_str() {
        "GET /a/b" => redirect(301, "c"),
        "GET /a/c" => redirect(302, "/d?e=f"),
        "GET /d?e=f" => redirect(308, &there),
        _ => response_with(404, ""),
    })
    .await;
    assert_eq!(get_ok(&Client::default(), &server.url("http", "127.0.0.1", "/a/b")).await, "there");

    let without_redirects = client_with("follow_redirects: false");
    let answer = get(&without_redirects, &server.url("http", "127.0.0.1", "/a/b")).await.expect("an answer");
    assert_eq!(answer.status, 301);

    let redirect_loop = Server::start(None, |_, _| redirect(302, "/")).await;
    let message = get_error(&Client::default(), &redirect_loop.http()).await;
    assert!(message.ends_with("redirects more than 10 times"), "{message}");
    assert_eq!(redirect_loop.requests().len(), 11);
    let nowhere = Server::start(None, |_, _| redirect(302, "gopher://somewhere/")).await;
    let message = get_error(&Client::default(), &nowhere.http()).await;
    assert!(message.contains("redirects to an invalid URL: \"gopher://somewhere/\" is not"), "{message}");
}

#[tokio::test]
async fn b85_a_post_is_repeated_or_fails_and_never_becomes_a_get() {
    let server = Server::start(None, |_, seen| match seen.line.as_str() {
        "POST /307" => redirect(307, "/there"),
        "PUT /308" => redirect(308, "/there"),
        "POST /302" => redirect(302, "/there"),
        _ => response_with(200, ""),
    })
    .await;
    let url = |path: &str| server.url("http", "127.0.0.1", path);
    let client = Client::default();
    assert_eq!(send(&client, Method::POST, &url("/307"), "body").await.expect("an answer").status, 200);
    assert_eq!(send(&client, Method::PUT, &url("/308"), "other").await.expect("an answer").status, 200);
    let seen: Vec<(String, String)> =
        server.requests().into_iter().map(|seen| (seen.line, seen.body)).collect();
    let line = |line: &str, body: &str| (line.to_string(), body.to_string());
    assert_eq!(
        seen,
        [
            line("POST /307", "body"),
            line("POST /there", "body"),
            line("PUT /308", "other"),
            line("PUT /there", "other")
        ]
    );
    let message = chain(&send(&client, Method::POST, &url("/302"), "body").await.expect_err("no answer"));
    let expected =
        format!("{} answered 302 Found: POST requests are not redirected to \"/there\"", url("/302"));
    assert_eq!(message, expected);
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn b85_another_host_gets_no_credentials() {
    let stranger = Server::always_ok(None).await;
    let there = stranger.url("http", "localhost", "/there");
    let back = stranger.url("http", "127.0.0.1", "/back");
    let server = Server::start(None, move |_, seen| {
        if seen.line == "GET /near" { redirect(307, &back) } else { redirect(307, &there) }
    })
    .await;
    let client = client_with("basic_auth: {username: a}\nheaders: {X-Key: hunter2}");
    get_ok(&client, &server.url("http", "127.0.0.1", "/far")).await;
    get_ok(&client, &server.url("http", "127.0.0.1", "/near")).await;
    let credential_headers = |seen: &ReceivedRequest| {
        (seen.headers.contains_key(AUTHORIZATION), seen.headers.contains_key("x-key"))
    };
    assert_eq!(server.requests().iter().map(credential_headers).collect::<Vec<_>>(), [(true, true); 2]);
    assert_eq!(
        stranger.requests().iter().map(credential_headers).collect::<Vec<_>>(),
        [(false, false), (true, true)]
    );
}
