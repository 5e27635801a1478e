//! Passwords, tokens and headers of requests.

use super::*;

#[tokio::test]
async fn credentials_and_headers_are_sent_with_every_request() {
    let server = Server::always_ok(None).await;
    let folder = folder(&[("password", "hunter2\n"), ("token", "first\n")]);
    let basic = client(
        folder.path(),
        "basic_auth: {username: promforest, password_file: password}\nheaders: {X-Scope-OrgID: '42'}",
    );
    get_ok(&basic, &server.http()).await;
    let bearer = client(folder.path(), "authorization: {credentials_file: token}");
    get_ok(&bearer, &server.http()).await;
    fs::write(folder.path().join("token"), "second").expect("writable");
    get_ok(&bearer, &server.http()).await;
    get_ok(&client_with("authorization: {type: Token, credentials: third}"), &server.http()).await;

    let seen = server.requests();
    let authorizations: Vec<_> =
        seen.iter().map(|seen| seen.header(AUTHORIZATION).expect("a header")).collect();
    // printf promforest:hunter2 | base64
    assert_eq!(
        authorizations,
        ["Basic cHJvbWZvcmVzdDpodW50ZXIy", "Bearer first", "Bearer second", "Token third"]
    );
    assert_eq!((seen[0].header("x-scope-orgid"), seen[1].header("x-scope-orgid")), (Some("42"), None));

    fs::remove_file(folder.path().join("token")).expect("the file exists");
    let message = get_error(&bearer, &server.http()).await;
    assert!(message.starts_with("cannot read ") && message.contains("token: No such file"), "{message}");
    fs::write(folder.path().join("token"), "two\nlines").expect("writable");
    assert_eq!(
        get_error(&bearer, &server.http()).await,
        "authorization contains a character that a header cannot have"
    );
    assert_eq!(server.requests().len(), 4);
}

/// Tokens 0, 1, 2 ..., each for `seconds`.
async fn token_endpoint(seconds: u64) -> Server {
    Server::start(None, move |i, _| {
        response_with(
            200,
            &format!(r#"{{"access_token": "token{i}", "token_type": "bearer", "expires_in": {seconds}}}"#),
        )
    })
    .await
}

fn oauth2(endpoint: &Server, more: &str) -> Client {
    let url = endpoint.url("http", "127.0.0.1", "/token");
    client_with(&format!("oauth2: {{client_id: 'a b', client_secret: 'p&w', token_url: '{url}'{more}}}"))
}

#[tokio::test]
async fn a_token_is_fetched_once_and_again_before_it_ends() {
    let (endpoint, server) = (token_endpoint(11).await, Server::always_ok(None).await);
    let client = oauth2(&endpoint, ", scopes: [metrics.write, b], endpoint_params: {audience: 'x/y'}");
    get_ok(&client, &server.http()).await;
    get_ok(&client, &server.http()).await;
    // Ten seconds before its end a token is not used any more.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    get_ok(&client, &server.http()).await;

    let authorizations: Vec<_> =
        server.requests().iter().map(|seen| seen.header(AUTHORIZATION).map(str::to_string)).collect();
    let token = |i: usize| Some(format!("Bearer token{i}"));
    assert_eq!(authorizations, [token(0), token(0), token(1)]);
    let token_requests = endpoint.requests();
    assert_eq!(token_requests.len(), 2);
    assert_eq!(token_requests[0].line, "POST /token");
    assert_eq!(token_requests[0].body, "grant_type=client_credentials&scope=metrics.write+b&audience=x%2Fy");
    // printf a+b:p%%26w | base64
    assert_eq!(token_requests[0].header(AUTHORIZATION), Some("Basic YStiOnAlMjZ3"));
}

#[tokio::test]
async fn a_token_that_is_withdrawn_is_replaced() {
    let endpoint = token_endpoint(3600).await;
    let server = Server::start(None, |i, seen| {
        let withdrawn = i > 0 && seen.header(AUTHORIZATION) == Some("Bearer token0");
        response_with(if withdrawn { 401 } else { 200 }, "")
    })
    .await;
    let client = oauth2(&endpoint, "");
    get_ok(&client, &server.http()).await;
    get_ok(&client, &server.http()).await;
    assert_eq!((server.requests().len(), endpoint.requests().len()), (3, 2));

    let never = Server::start(None, |_, _| response_with(401, "no")).await;
    let client = oauth2(&endpoint, "");
    assert_eq!(get(&client, &never.http()).await.expect("an answer").status, 401);
    assert_eq!(never.requests().len(), 1, "a fresh token that is refused is not replaced at once");
    assert_eq!(get(&client, &never.http()).await.expect("an answer").status, 401);
    assert_eq!(never.requests().len(), 3);
}

#[tokio::test]
async fn an_endpoint_may_want_the_secret_in_the_form() {
    let endpoint = Server::start(None, |_, seen| {
        let in_form = seen.body.ends_with("&client_id=a+b&client_secret=p%26w");
        if in_form {
            response_with(200, r#"{"access_token": "x", "expires_in": "60"}"#)
        } else {
            response_with(401, "")
        }
    })
    .await;
    let server = Server::always_ok(None).await;
    get_ok(&oauth2(&endpoint, ""), &server.http()).await;
    assert_eq!(server.requests()[0].header(AUTHORIZATION), Some("Bearer x"));

    for (status, body, reason) in [
        (403, "unknown client\nsecond line", "403 Forbidden: unknown client"),
        (200, "{}", "the response has no token"),
        (302, "", "302 Found: "),
    ] {
        let endpoint = Server::start(None, move |_, _| response_with(status, body)).await;
        let message = get_error(&oauth2(&endpoint, ""), &server.http()).await;
        assert_eq!(
            message,
            format!("no token from {}: {reason}", endpoint.url("http", "127.0.0.1", "/token"))
        );
    }
    assert_eq!(server.requests().len(), 1);
}
