"""What ministack 1.5.33 leaves out of IAM, put in from outside; Python imports this file by itself when its folder is on PYTHONPATH.

ministack evaluates conditions, but never tells its evaluator the encryption context of a KMS request, and its policy simulator
ignores the context that the caller gives. Both are documented of AWS, and our roles stand on them. Nothing else is changed: the
decision is ministack's.
"""

import contextvars
import json

try:
    from ministack.core import iam_actions, iam_evaluator
    from ministack.services import iam
except ImportError:  # some other Python program that inherits the environment
    iam_actions = None

simulated = contextvars.ContextVar("simulated", default={})


def with_encryption_context(tags):
    def context(service, action, body, params):
        found = dict(tags(service, action, body, params))
        if service == "kms":
            try:
                request = json.loads(body or b"{}")
            except ValueError:
                request = {}
            for name, value in (request.get("EncryptionContext") or {}).items():
                found[f"kms:EncryptionContext:{name}"] = value
        return found

    return context


def with_given_context(parameters):
    def params(request):
        given = {}
        number = 1
        while key := iam._p(request, f"ContextEntries.member.{number}.ContextKeyName"):
            given[key.lower()] = iam._p(request, f"ContextEntries.member.{number}.ContextKeyValues.member.1")
            number += 1
        simulated.set(given)
        return parameters(request)

    return params


def forgotten_after(build):
    def results(*args):
        try:
            return build(*args)
        finally:
            simulated.set({})

    return results


def asking_given_first(resolve):
    return lambda key, ctx: simulated.get().get(key.lower(), None) or resolve(key, ctx)


if iam_actions:
    iam_actions.request_tag_context = with_encryption_context(iam_actions.request_tag_context)
    iam._extract_simulate_params = with_given_context(iam._extract_simulate_params)
    iam._build_simulate_results_real = forgotten_after(iam._build_simulate_results_real)
    iam_evaluator._resolve_condition_key = asking_given_first(iam_evaluator._resolve_condition_key)
