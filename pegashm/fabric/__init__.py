"""How payloads come from another host's arena: `interface` is the promise, `tcp` and `verbs` keep it.

This file imports none of them: verbs needs a library and a device that most hosts lack.
"""

__all__: list[str] = []
