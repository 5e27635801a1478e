// The dashboards are written as JSON, which Grafana imports and exports; only what the configuration changes is changed here.
{
  local config = $._config,

  local files = {
    'fleet.json': import '../grafana/dashboards/fleet.json',
    'group.json': import '../grafana/dashboards/group.json',
    'promforest.json': import '../grafana/dashboards/promforest.json',
  },
  local uids = {
    'promforest-fleet': config.dashboards.fleet,
    'promforest-group': config.dashboards.group,
    'promforest-self': config.dashboards.itself,
  },

  local replaced(text, uid) = std.strReplace(text, '/d/%s/' % uid, '/d/%s/' % uids[uid]),
  local withLinks(board) =
    std.parseJson(std.foldl(replaced, std.objectFields(uids), std.manifestJsonMinified(board))),

  grafanaDashboards+:: {
    [name]: withLinks(files[name]) {
      uid: uids[super.uid],
      tags: config.dashboardTags,
      links: [if link.type == 'dashboards' then link { tags: config.dashboardTags } else link for link in super.links],
      refresh: config.dashboardRefresh,
    }
    for name in std.objectFields(files)
  },
}
