"""What a request for a response becomes as a chat."""

from routers.responses_wire import Conversation, ResponsesRequest


def test_parts_and_items_become_a_chats():
    parts = [
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "input_file", "file_data": "data:x", "filename": "f.pdf"},
        {"type": "input_text", "text": "words"},
    ]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "output_text", "text": "so", "annotations": []}
    conversation = Conversation(None)
    conversation.add(
        [
            {"role": "user", "content": parts},
            {"type": "reasoning", "summary": [], "content": [{"text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [output]},
            call,
            {**call, "call_id": "d"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "function_call_output", "call_id": "d", "output": [parts[3]]},
            call,
            {"type": "reasoning", "summary": [{"text": "and came to nothing"}]},
        ]
    )
    function = {"name": "f", "arguments": "{}"}
    made = [{"id": id, "type": "function", "function": function} for id in ("c", "d")]
    assert conversation.messages == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:x", "filename": "f.pdf"}},
                {"type": "text", "text": "words"},
            ],
        },
        {"role": "assistant", "content": "so", "reasoning": "hm", "tool_calls": made},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "tool", "tool_call_id": "d", "content": "words"},
        {"role": "assistant", "content": None, "tool_calls": made[:1]},
    ]


def test_what_is_asked_becomes_a_chats():
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    body = {
        "model": "m",
        "input": "x",
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": schema, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 7,
        "metadata": {"a": "b"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": False},
        "stream": True,
        "seed": 3,
        "user": "u",
    }
    function = {"name": "f", "parameters": {}, "strict": True}
    assert ResponsesRequest.model_validate(body).chat(body, []) == {
        "model": "m",
        "messages": [],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        "verbosity": "low",
        "reasoning_effort": "low",
        "max_completion_tokens": 7,
        "stream": True,
        "seed": 3,
        "user": "u",
    }
