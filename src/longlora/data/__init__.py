"""Turn texts or conversations, wherever they are stored, into rows of one context length."""

from longlora.data.conversation_rows import pack_conversations, tokenize_conversations
from longlora.data.conversations import Conversation
from longlora.data.document_rows import count_tokens, pack_rows, tokenize_documents
from longlora.data.encode import EncodedConversation, encode_conversation, show_example
from longlora.data.sources import ConversationSource, DocumentSource, read_conversations, read_documents
from longlora.data.table_cache import content_digest

__all__ = [
    "Conversation",
    "ConversationSource",
    "DocumentSource",
    "EncodedConversation",
    "content_digest",
    "count_tokens",
    "encode_conversation",
    "pack_conversations",
    "pack_rows",
    "read_conversations",
    "read_documents",
    "show_example",
    "tokenize_conversations",
    "tokenize_documents",
]
