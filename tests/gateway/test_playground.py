"""The page at / in a real browser: the text is that of every other client, and forks are its own continuations."""

from playgrounds import text_of, token_after


def test_a_text_grows_pauses_forks_and_goes_back(playground, gateway, server):
    page = playground(gateway)
    page.start("hello", seed=7, length=300, pace=5)
    page.grown(40)
    paused = page.pause()
    assert 45 <= len(paused) < 305
    page.set(pace=13)
    page.page.click("#pause")  # goes on
    whole = page.complete()
    page.fork(150, "2")
    page.wait(lambda: page.text != whole)
    forked = page.complete()
    page.page.click("#back")
    page.wait(lambda: page.text == whole)
    with server.client() as client:
        assert whole == "hello" + text_of(client, "hello", seed=7, max_chars=300)
        token = token_after(client, 145, "hello", seed=7)
        likely = client.generate(resume_token=token, max_chars=1, logprobs=2)
        "".join(likely)
        second = likely.logprobs[0].alternatives[1].character
        with client.interact(resume_token=token) as session:
            session.feed(second)
            assert forked == whole[:150] + second + "".join(session.generate(max_chars=299))
