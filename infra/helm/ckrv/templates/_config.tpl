{{/* server.toml. JSON's strings and arrays of strings are TOML's, too. */}}
{{- define "ckrv.config" -}}
worker = {{ include "ckrv.worker" . | toJson }}
metrics_listen = "0.0.0.0:{{ .Values.metrics.port }}"
{{- if .Values.cloneCa }}
ca_file = "/etc/ckrv/clone-ca.crt"
{{- end }}
{{ .Values.config | trim }}

[store]
backend = "aws"
table = {{ .Values.store.table | toJson }}
bucket = {{ .Values.store.bucket | toJson }}
kms_key = {{ .Values.store.kmsKey | toJson }}
{{- with .Values.store.region }}
region = {{ . | toJson }}
{{- end }}
{{- if .Values.store.forcePathStyle }}
force_path_style = true
{{- end }}
{{- with .Values.store.endpoints }}

[store.endpoints]
{{- range $name, $url := . }}
{{ $name }} = {{ $url | toJson }}
{{- end }}
{{- end }}

[gateway]
listen = "0.0.0.0:{{ .Values.gateway.port }}"
certificate = "/etc/ckrv/gateway/tls.crt"
key = "/etc/ckrv/gateway/tls.key"
drain_seconds = {{ .Values.dispatcher.drainSeconds }}

[kubernetes]
namespace = {{ .Values.jobs.namespace | toJson }}
image = {{ include "ckrv.image" . | toJson }}
image_pull_policy = {{ .Values.image.pullPolicy | toJson }}
{{- with .Values.image.pullSecrets }}
image_pull_secrets = {{ . | toJson }}
{{- end }}
{{- with .Values.agents.runtimeClass }}
runtime_class = {{ . | toJson }}
{{- end }}
{{- with include "ckrv.jobsPriorityClass" . }}
priority_class = {{ . | toJson }}
{{- end }}
unscheduled_seconds = {{ .Values.jobs.unscheduledSeconds }}
creates_per_second = {{ .Values.jobs.createsPerSecond }}
{{- with .Values.network.apiServer.url }}
api_server = {{ . | toJson }}
{{- end }}
gateway_url = "https://{{ include "ckrv.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.gateway.port }}"
gateway_ca = "ckrv-gateway-ca"

[kubernetes.job_resources]
{{- range $key, $value := .Values.jobs.resources }}
{{ $key }} = {{ int64 $value }}
{{- end }}
{{- range .Values.jobs.tolerations }}

[[kubernetes.tolerations]]
{{- range $key, $value := . }}
{{ $key }} = {{ if kindIs "string" $value }}{{ $value | toJson }}{{ else }}{{ int64 $value }}{{ end }}
{{- end }}
{{- end }}
{{- with .Values.agents.nodeSelector }}

[kubernetes.node_selector]
{{- range $key, $value := . }}
{{ $key | toJson }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- with .Values.jobs.nodeSelector }}

[kubernetes.job_node_selector]
{{- range $key, $value := . }}
{{ $key | toJson }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end }}
