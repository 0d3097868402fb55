process WSISCORE_SCORE {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "wsiscore"

    input:
    tuple val(meta), path(slide), path(regions)

    output:
    tuple val(meta), path("${prefix}/score.json")           , emit: score
    tuple val(meta), path("${prefix}/report.html")          , emit: report
    tuple val(meta), path("${prefix}/cells.parquet")        , emit: cells, optional: true
    tuple val(meta), path("${prefix}/mosaic.ome.zarr")      , emit: mosaic
    tuple val(meta), path("${prefix}.tsv")                  , emit: tsv
    path "versions.yml"                                     , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    printf 'path,name,roi\\n"%s","%s","%s"\\n' '${slide}' '${prefix}' '${regions}' > manifest.csv
    wsiscore score --manifest manifest.csv --out . --threads ${task.cpus} ${args} > ${prefix}.tsv

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        wsiscore: \$(wsiscore --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}/mosaic.ome.zarr
    touch ${prefix}/score.json ${prefix}/report.html ${prefix}/cells.parquet ${prefix}/mosaic.ome.zarr/zarr.json
    touch ${prefix}.tsv

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        wsiscore: \$(wsiscore --version | sed 's/.* //')
    END_VERSIONS
    """
}
