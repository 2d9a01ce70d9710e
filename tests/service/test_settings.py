from service.settings import Settings


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("REQUIRE_CUDA", "1")
    read = Settings()
    assert (read.port, read.require_cuda, read.host) == (9001, True, "127.0.0.1")


def test_every_setting_has_a_description():
    fields = Settings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []
