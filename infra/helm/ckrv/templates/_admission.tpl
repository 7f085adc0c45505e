{{/* Who asks, in CEL. */}}
{{- define "ckrv.cel.dispatcher" -}}
'system:serviceaccount:{{ .Release.Namespace }}:{{ include "ckrv.serviceAccount" . }}'
{{- end }}

{{- define "ckrv.cel.job" -}}
'system:serviceaccount:{{ .Values.jobs.namespace }}:ckrv-job'
{{- end }}

{{- define "ckrv.cel.agent" -}}
'system:serviceaccount:{{ .Values.jobs.namespace }}:ckrv-agent'
{{- end }}

{{/* A list of strings in CEL. */}}
{{- define "ckrv.cel.list" -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}'{{ $item }}'{{ end }}]
{{- end }}

{{/* Whether a container `c` is of our image, in any version: pods of the last one go on over an upgrade. */}}
{{- define "ckrv.cel.ours" -}}
(c.image.startsWith('{{ .Values.image.repository }}:') || c.image.startsWith('{{ .Values.image.repository }}@'))
{{- end }}

{{- define "ckrv.cel.variables" -}}
- name: labels
  expression: object.metadata.?labels.orValue({})
- name: containers
  expression: object.spec.containers + object.spec.?initContainers.orValue([])
{{- end }}

{{/* What holds for every pod of ours, whoever makes it. `.kind` is "a job pod" or "an agent pod". */}}
{{- define "ckrv.cel.common" -}}
{{- $root := .root }}
- message: "ckrv: {{ .kind }} has the labels of this installation"
  expression: >-
    variables.labels[?'app.kubernetes.io/managed-by'].orValue('') == 'ckrv' &&
    variables.labels[?'ckrv.dev/role'].orValue('') == '{{ .role }}' &&
    variables.labels[?'ckrv.dev/install'].orValue('') == '{{ include "ckrv.worker" $root }}'
- message: "ckrv: {{ .kind }} runs as the service account {{ .account }}, without a token that is mounted by itself"
  expression: >-
    object.spec.serviceAccountName == '{{ .account }}' &&
    object.spec.?automountServiceAccountToken.orValue(true) == false
- message: "ckrv: {{ .kind }} takes no environment from Secrets or ConfigMaps"
  expression: >-
    variables.containers.all(c, !has(c.envFrom) &&
    c.?env.orValue([]).all(e, !has(e.valueFrom) || has(e.valueFrom.fieldRef)))
- message: "ckrv: {{ .kind }} uses nothing of its node: no host network, processes or ports, no privileges, no devices"
  expression: >-
    !object.spec.?hostNetwork.orValue(false) && !object.spec.?hostPID.orValue(false) && !object.spec.?hostIPC.orValue(false) &&
    !has(object.spec.resourceClaims) && object.spec.?os.?name.orValue('linux') == 'linux' &&
    variables.containers.all(c, !c.?securityContext.?privileged.orValue(false) &&
    c.?ports.orValue([]).all(p, p.?hostPort.orValue(0) == 0))
- message: "ckrv: {{ .kind }} leaves its place to the scheduler and goes to the nodes that are meant for it"
  expression: >-
    object.spec.?nodeName.orValue('') == '' &&
    object.spec.?tolerations.orValue([]).all(t, t.?key.orValue('') in
    {{ include "ckrv.cel.list" (concat (list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" "node.kubernetes.io/memory-pressure") .tolerated) }})
    {{- range $key, $value := .nodes }} &&
    object.spec.?nodeSelector[?'{{ $key }}'].orValue('') == '{{ $value }}'
    {{- end }}
- message: "ckrv: {{ .kind }} has the priority and the runtime class that are meant for it"
  expression: >-
    {{- with include "ckrv.jobsPriorityClass" $root }}
    object.spec.?priorityClassName.orValue('') == '{{ . }}' &&
    {{- else }}
    !object.spec.?priorityClassName.orValue('').startsWith('system-') &&
    {{- end }}
    object.spec.?runtimeClassName.orValue('') == '{{ .runtime }}'
- message: "ckrv: {{ .kind }} pulls with no other Secrets than the configured ones"
  expression: >-
    object.spec.?imagePullSecrets.orValue([]).all(s, s.?name.orValue('') in {{ include "ckrv.cel.list" $root.Values.image.pullSecrets }})
- message: "ckrv: {{ .kind }} goes when it is deleted: it has no finalizer"
  expression: object.metadata.?finalizers.orValue([]).size() == 0
{{- end }}

{{- define "ckrv.tolerated" -}}
{{- $keys := list }}
{{- range .Values.jobs.tolerations }}{{ $keys = append $keys (.key | default "") }}{{ end -}}
{{ $keys | toJson }}
{{- end }}

{{/* One binding: in the jobs' namespace and nowhere else. */}}
{{- define "ckrv.cel.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels: {{- include "ckrv.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny, Audit]
  matchResources:
    namespaceSelector:
      matchLabels:
        kubernetes.io/metadata.name: {{ .root.Values.jobs.namespace }}
{{- end }}
