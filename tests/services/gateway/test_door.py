"""Who may come in, from where, and how it is told otherwise."""

from __future__ import annotations

import json

import pytest

HELLO = {"model": "beta", "messages": [{"role": "user", "content": "Hello"}]}


async def error_of(response) -> dict:
    assert response.content_type == "application/json"
    error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/beta"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/v1/nothing"),
        ("DELETE", "/v1/models"),
        ("OPTIONS", "/v1/models"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer mk-wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic cm9vdDpyb290"},
        {"X-Api-Key": "mk-wrong"},
        {"Authorization": "Bearer töken"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
async def test_nothing_is_told_without_a_token(site, method, path, headers):
    async with site.http(None) as client, client.request(method, path, headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await error_of(response))["code"] == "invalid_api_key"


async def test_a_token_in_the_address_is_no_token(site):
    async with site.http(None) as client:
        for name in ("token", "api_key", "key", "access_token"):
            async with client.get("/v1/models", params={name: site.system.token}) as response:
                assert response.status == 401


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key"])
async def test_a_token_is_taken_from_either_header(site, header):
    value = site.system.token if header == "X-Api-Key" else f"bearer  {site.system.token} "
    async with site.http(None) as client, client.get("/v1/models", headers={header: value}) as response:
        assert response.status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1", "/v1/audio", "/v1/chat", "/favicon.ico", "/v1/models/"])
async def test_an_unknown_route_is_told_in_openais_shape(site, path):
    async with site.http() as client, client.get(path) as response:
        assert response.status == 404
        assert (await error_of(response))["code"] == "unknown_url"


async def test_a_wrong_method_is_told_with_the_right_one(site):
    async with site.http() as client, client.get("/v1/chat/completions") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert "it takes POST" in (await error_of(response))["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/octet-stream"]
)
async def test_what_is_not_json_is_refused(site, kind):
    async with (
        site.http() as client,
        client.post(
            "/v1/chat/completions", data=json.dumps(HELLO).encode(), headers={"Content-Type": kind}
        ) as response,
    ):
        assert response.status == 415
        assert (await error_of(response))["code"] == "unsupported_media_type"
    assert site.script.asked == []


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
async def test_json_is_taken_by_its_names(site, kind):
    async with (
        site.http() as client,
        client.post(
            "/v1/chat/completions", data=json.dumps(HELLO).encode(), headers={"Content-Type": kind}
        ) as response,
    ):
        assert response.status == 200


async def test_every_response_has_a_request_id_and_does_not_name_its_software(site):
    async with site.http() as client:
        seen = set()
        for path in ("/", "/livez", "/v1/models", "/nothing"):
            async with client.get(path) as response:
                seen.add(response.headers["X-Request-Id"])
                assert response.headers["Server"] == "microkernel"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with client.post("/v1/chat/completions", json={**HELLO, "stream": True}) as response:
            seen.add(response.headers["X-Request-Id"])
            await response.read()
        assert len(seen) == 5


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2:3_x", True), ("a b", False), ("x" * 129, False), ("<i>", False)])
async def test_a_request_id_is_kept_if_it_is_harmless(site, given, kept):
    async with site.http() as client, client.get("/livez", headers={"X-Request-Id": given}) as response:
        assert (response.headers["X-Request-Id"] == given) is kept


async def test_a_trace_goes_on_through_inference(site):
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with site.http() as client:
        async with client.post("/v1/chat/completions", json=HELLO, headers={"traceparent": header}) as response:
            assert response.status == 200
        async with client.post("/v1/chat/completions", json=HELLO, headers={"traceparent": "junk"}) as response:
            assert response.status == 200
    first, second = (call.trace for call in site.script.calls)
    assert (first.trace_id, first.parent_id) == (header[3:35], header[36:52])
    assert second.trace_id not in {first.trace_id, ""}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]", "[::1]:7070", "localhost.", "lab"])
async def test_a_loopback_gateway_answers_for_its_own_names(open_site, host):
    async with open_site(allowed_hosts=["Lab"]) as site, site.http() as client:
        response = await client.get("/livez", headers={"Host": host})
        assert response.status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7070", "127.0.0.1.evil.example", "", "[::2]", "169.254.1.1"]
)
@pytest.mark.parametrize("path", ["/", "/livez", "/v1/models", "/mk"])
async def test_a_loopback_gateway_does_not_answer_for_others(site, host, path):
    async with site.http() as client, client.get(path, headers={"Host": host}) as response:
        assert response.status == 421
        assert (await error_of(response))["code"] == "misdirected_request"


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}


async def test_other_origins_get_no_leave(open_site):
    async with open_site(allowed_origins=["https://lab.example"]) as site, site.http() as client:
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
            async with client.options("/v1/chat/completions", headers={**headers, **PREFLIGHT}) as response:
                assert response.status == 405
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_without_the_setting_no_origin_gets_leave(site):
    headers = {"Origin": "https://lab.example", **PREFLIGHT}
    async with site.http() as client, client.options("/v1/models", headers=headers) as response:
        assert response.status == 405
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("allowed", ["https://Lab.example/", "*"])
async def test_an_allowed_origin_may_ask_and_read(open_site, allowed):
    origin = {"Origin": "https://lab.example"}
    async with open_site(allowed_origins=[allowed]) as site:
        async with site.http(None) as client:
            async with client.options("/v1/chat/completions", headers={**origin, **PREFLIGHT}) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == "https://lab.example"
                assert response.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
            async with client.post("/v1/chat/completions", json=HELLO, headers=origin) as response:
                assert response.status == 401  # leave to read is not leave to enter
                assert response.headers["Access-Control-Allow-Origin"] == "https://lab.example"
        async with site.http() as client:
            asked = {**HELLO, "stream": True}
            async with client.post("/v1/chat/completions", json=asked, headers=origin) as response:
                assert response.headers["Access-Control-Allow-Origin"] == "https://lab.example"
                assert response.headers["Vary"] == "Origin"
                await response.read()


async def test_a_defect_is_logged_and_told_without_its_traceback(site, monkeypatch, caplog):
    from services.gateway import models_route

    def broken(_) -> bytes:
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(models_route, "models_json", broken)
    async with site.http() as client, client.get("/v1/models") as response:
        assert response.status == 500
        error = await error_of(response)
    assert error["code"] == "internal_error"
    assert "Traceback" not in error["message"]
    assert "GET /v1/models raised ZeroDivisionError" in caplog.text
