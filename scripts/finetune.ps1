# The old workflow with environment variables, for Windows: like finetune.sh, which explains them.
#
#   $env:dataset = 'slqm'; $env:data_dir = '..\'; $env:model_dir = '..\'
#   $env:model_name = 'chinese-llama-2-7b-16k.Q2_K'
#   powershell -ExecutionPolicy Bypass -File scripts\finetune.ps1
#
# Arguments are passed to the program and have priority. For Windows PowerShell 5.1 and later; not tested yet.

$ErrorActionPreference = 'Stop'
$OutputEncoding = [Console]::OutputEncoding = New-Object System.Text.UTF8Encoding($false)
$env:PYTHONUTF8 = '1'

function Stop-With([string] $text, [int] $code) {
    [Console]::Error.WriteLine("error: $text")
    exit $code
}

function Get-Setting([string] $name, [string] $default) {
    $value = [Environment]::GetEnvironmentVariable($name)
    if ([string]::IsNullOrEmpty($value)) { $default } else { $value }
}

$dataset = Get-Setting 'dataset' 'shakespeare'
$dataDir = Get-Setting 'data_dir' '.'
$modelDir = Get-Setting 'model_dir' '.'
$modelName = Get-Setting 'model_name' ''
$cmd = Get-Setting 'cmd' 'finetune'
$adamIter = Get-Setting 'adamiter' '30'
$inter = Get-Setting 'inter' ''

if (-not $modelName) {
    Stop-With 'which model? Set model_name (and model_dir, dataset, data_dir)' 2
}
if ('finetune', 'finetune-bc' -notcontains $cmd) {
    Stop-With "cmd is '$cmd', known are finetune and finetune-bc" 2
}
if ('', '0', '1' -notcontains $inter) { Stop-With "inter is '$inter', give 1 or nothing" 2 }

$root = Split-Path -Parent $PSScriptRoot
$python = Get-Setting 'PYTHON' (Join-Path $root '.venv\Scripts\python.exe')
if (-not (Get-Command $python -ErrorAction SilentlyContinue)) { $python = 'python' }
$before = Get-Setting 'PYTHONPATH' ''
$env:PYTHONPATH = if ($before) { $root + [IO.Path]::PathSeparator + $before } else { $root }

$model = Join-Path $modelDir "$modelName.gguf"
$data = Join-Path $dataDir "$dataset.txt"
$jsonl = Join-Path $dataDir "$dataset.jsonl"
if (-not (Test-Path -LiteralPath $data) -and (Test-Path -LiteralPath $jsonl)) { $data = $jsonl }
$log = Join-Path (Get-Location).ProviderPath "$modelName.log"

# Runs a program; its lines go to the screen and, as UTF-8, to the log. Returns its exit code.
function Invoke-Logged([string[]] $words) {
    $utf8 = New-Object System.Text.UTF8Encoding($false)
    $writer = New-Object System.IO.StreamWriter($log, $true, $utf8)
    $ErrorActionPreference = 'Continue'  # notes on standard error are not errors
    try {
        & $python -m @words 2>&1 | ForEach-Object {
            $writer.WriteLine("$_")
            $writer.Flush()
            [Console]::Out.WriteLine("$_")
        }
    }
    finally {
        $writer.Dispose()
    }
    $LASTEXITCODE
}

$words = @(
    'nbllama.finetune', '--model-base', $model, '--train-data', $data,
    '--checkpoint-in', "chk-$modelName-LATEST.gguf",
    '--checkpoint-out', "chk-$modelName-ITERATION.gguf",
    '--lora-out', "lora-$modelName-ITERATION.gguf", '--adam-iter', $adamIter
) + $args
$code = Invoke-Logged $words
if ($code -ne 0) { exit $code }
if ($inter -ne '1') { exit 0 }

$merged = "$modelName-merged.gguf"
$code = Invoke-Logged @(
    'nbllama.export_lora', '--model-base', $model, '--lora', "lora-$modelName-LATEST.gguf",
    '--model-out', $merged
)
if ($code -ne 0) { exit $code }
& $python -m nbllama.main -m $merged -cnv
exit $LASTEXITCODE
