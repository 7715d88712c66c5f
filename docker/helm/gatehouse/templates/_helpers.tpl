{{- define "gatehouse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "gatehouse.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "gatehouse.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gatehouse.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gatehouse.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gatehouse.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gatehouse.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "gatehouse.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "gatehouse.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gatehouse.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "gatehouse.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{- define "gatehouse.policies" -}}
{{- if .Values.policies.existingConfigMap }}
{{- .Values.policies.existingConfigMap }}
{{- else if .Values.policies.toml }}
{{- printf "%s-policies" (include "gatehouse.fullname" .) }}
{{- end }}
{{- end }}

{{- define "gatehouse.keys" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.sha256 }}
{{- printf "%s-keys" (include "gatehouse.fullname" .) }}
{{- end }}
{{- end }}

{{- /* A file of Prometheus or of app/cli/scaling, as an object with this release's labels. */}}
{{- define "gatehouse.scaler" -}}
{{- $values := .root.Values.autoscaling }}
{{- $text := .root.Files.Get .file
  | replace "${name}" (include "gatehouse.fullname" .root)
  | replace "${namespace}" .root.Release.Namespace
  | replace "${min_replicas}" (toJson $values.minReplicas)
  | replace "${max_replicas}" (toJson $values.maxReplicas)
  | replace "${busy_share}" (toString $values.busyShare)
  | replace "${prometheus}" $values.prometheus }}
{{- $object := fromYaml $text }}
{{- $_ := set $object.metadata "labels" (include "gatehouse.labels" .root | fromYaml) }}
{{- toYaml $object }}
{{- end }}
