{{- define "pegashm.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pegashm.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pegashm.labels" -}}
{{ include "pegashm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
pegashm/arena: {{ .Values.arena.name | quote }}
{{- end -}}

{{- define "pegashm.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The arena's size as Kubernetes writes it: 64G of ours, which is 64 GiB, is 64Gi there. */}}
{{- define "pegashm.size" -}}
{{- regexReplaceAll "([KMGT])(iB|i)?$" .Values.arena.size "${1}i" -}}
{{- end -}}

{{/* Its whole mebibytes, for sums. */}}
{{- define "pegashm.mebibytes" -}}
{{- $size := . -}}
{{- $number := regexFind "^[0-9]+" $size | int64 -}}
{{- if hasSuffix "Ti" $size }}{{ mul $number 1048576 }}
{{- else if hasSuffix "Gi" $size }}{{ mul $number 1024 }}
{{- else if hasSuffix "Mi" $size }}{{ $number }}
{{- else }}{{ fail (printf "%s: expected whole Mi, Gi or Ti" $size) }}
{{- end -}}
{{- end -}}

{{/* Memory of the supervisor: the arena's unless that is on huge pages, which are counted apart, and what is asked for beside it. */}}
{{- define "pegashm.memory" -}}
{{- $extra := include "pegashm.mebibytes" .Values.resources.extraMemory | trim | int64 -}}
{{- if .Values.arena.hugepages -}}
{{ $extra }}Mi
{{- else -}}
{{ add $extra (include "pegashm.mebibytes" (include "pegashm.size" .) | trim | int64) }}Mi
{{- end -}}
{{- end -}}
