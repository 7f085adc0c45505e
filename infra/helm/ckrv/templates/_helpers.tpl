{{- define "ckrv.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "ckrv.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "ckrv.name" .) .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "ckrv.name" .) | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* For objects that belong to no namespace. */}}
{{- define "ckrv.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "ckrv.fullname" .) | trunc 200 }}
{{- end }}

{{- define "ckrv.worker" -}}
{{ .Values.worker | default (printf "%s.%s" .Release.Namespace (include "ckrv.fullname" .) | trunc 63 | trimSuffix "-" | trimSuffix ".") }}
{{- end }}

{{- define "ckrv.serviceAccount" -}}
{{ .Values.serviceAccount.name }}
{{- end }}

{{- define "ckrv.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "ckrv.selector" -}}
app.kubernetes.io/name: {{ include "ckrv.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: dispatcher
{{- end }}

{{/* Not `managed-by: ckrv`: that is for pods that the dispatcher makes. */}}
{{- define "ckrv.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/name: {{ include "ckrv.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: ckrv
{{- end }}

{{- define "ckrv.gatewaySecret" -}}
{{- if eq .Values.gateway.tls.mode "secret" -}}
{{ required "gateway.tls.secretName: the Secret with the gateway's tls.crt and tls.key" .Values.gateway.tls.secretName }}
{{- else -}}
{{ .Values.gateway.tls.secretName | default (printf "%s-gateway-tls" (include "ckrv.fullname" .)) }}
{{- end -}}
{{- end }}

{{/* The port of a job pod on which it waits for its agents: a constant of the code. */}}
{{- define "ckrv.doorPort" -}}7443{{- end }}

{{- define "ckrv.jobsPriorityClass" -}}
{{- if .Values.priorityClasses.create }}{{ include "ckrv.clusterName" . }}-jobs{{ end -}}
{{- end }}

{{- define "ckrv.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ckrv.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
