{{- define "ckrv.probeContainer" -}}
resources:
  requests: {cpu: 10m, memory: 16Mi, ephemeral-storage: 16Mi}
  limits: {cpu: 100m, memory: 32Mi, ephemeral-storage: 16Mi}
securityContext: {{- include "ckrv.restrictedContainer" . | nindent 2 }}
{{- end }}

{{- define "ckrv.probePod" -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "ckrv.labels" .root | nindent 4 }}
    app.kubernetes.io/component: probe
    {{- with .role }}
    ckrv.dev/role: {{ . }}
    {{- end }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-weight: {{ .weight | quote }}
    # It stays until the next time, so that its log can be read.
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 300
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  securityContext: {{- include "ckrv.restrictedPod" .root | nindent 4 }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  containers:
    - name: probe
      image: {{ .root.Values.probe.image }}
      imagePullPolicy: {{ .root.Values.probe.pullPolicy }}
      env:
        - name: TARGETS
          value: {{ join " " .targets | quote }}
        - name: FROM
          value: {{ .role | default "anywhere else" | quote }}
      command:
        - /bin/sh
        - -c
        - |
          {{- include "ckrv.probeScript" . | nindent 10 }}
      {{- include "ckrv.probeContainer" .root | nindent 6 }}
{{- end }}

{{/* Some network plugins let everything through for the first seconds of a pod: what is reached is tried again. */}}
{{- define "ckrv.probeScript" -}}
targets="$TARGETS api-server=$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"
[ -z "$CKRV_PROBE_SERVICE_HOST" ] || targets="$targets neighbour=$CKRV_PROBE_SERVICE_HOST:$CKRV_PROBE_SERVICE_PORT"
for server in $(busybox sed -n 's/^nameserver *//p' /etc/resolv.conf); do targets="$targets dns=$server:53"; done
reached() { busybox nc -w 3 "${1%:*}" "${1##*:}" -e busybox true </dev/null >/dev/null 2>&1; }
echo "from: $FROM"
failed=0
for target in $targets; do
  address="${target#*=}"
  tries=0
  verdict=denied
  while reached "$address"; do
    tries=$((tries + 1))
    if [ "$FROM" != agent ]; then verdict=reached; break; fi
    if [ "$tries" -ge 5 ]; then verdict=REACHED; failed=1; break; fi
    busybox sleep 2
  done
  [ "$tries" -eq 0 ] || [ "$verdict" != denied ] || verdict="denied (only at try $((tries + 1)))"
  echo "${target%%=*} $address: $verdict"
done
exit $failed
{{- end }}
