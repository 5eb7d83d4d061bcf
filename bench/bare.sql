-- The schema of the specification, word for word, with the least that it needs around it: what bench.py compares with.
CREATE FUNCTION generate_random_id(prefix TEXT) RETURNS TEXT -- noqa: CP03
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN prefix || '_' || TRANSLATE(ENCODE(UUID_SEND(GEN_RANDOM_UUID()), 'base64'), '+/=', '-_');

CREATE TABLE alicia_conversations (id TEXT PRIMARY KEY);

CREATE TABLE alicia_session_stats (
    id TEXT PRIMARY KEY DEFAULT generate_random_id('ass'), -- noqa: CP03
    conversation_id TEXT NOT NULL REFERENCES alicia_conversations (id) ON DELETE CASCADE,
    message_count INTEGER NOT NULL DEFAULT 0,
    tool_call_count INTEGER NOT NULL DEFAULT 0,
    memories_used INTEGER NOT NULL DEFAULT 0,
    session_duration_seconds INTEGER NOT NULL DEFAULT 0,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW()
);

CREATE INDEX idx_session_stats_conversation ON alicia_session_stats (conversation_id);
CREATE INDEX idx_session_stats_created_at ON alicia_session_stats (created_at DESC);

CREATE FUNCTION update_updated_at() RETURNS TRIGGER -- noqa: CP03
LANGUAGE plpgsql
AS $function$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END
$function$;

CREATE TRIGGER update_session_stats_updated_at
BEFORE UPDATE ON alicia_session_stats
FOR EACH ROW EXECUTE FUNCTION update_updated_at(); -- noqa: CP03
