"""DeepSeek sparse attention on one H200: its parts and the whole beside what others have."""
