// PM2: pm2 start ecosystem.config.js             the guide's production block
//      PROFILE=complete pm2 start ecosystem.config.js    ours: every frame answered (firsttouch config --profiles)
// uvicorn must be on PATH: activate the virtual environment that firsttouch is installed in.
const guide = {
  PARTIAL_DOWNLOAD: '1',
  PARTIAL_DOWNLOAD_MB: '4',
  DEVICE: 'cuda',
  IMG_SIZE: '416',
  BATCH_SIZE: '32',
  FRAME_STRIDE: '5',
  PREFETCH_FRAMES: '128',
  RAMP_UP: '1',
  RAMP_UP_FIRST_BATCH: '2',
  DISABLE_TRACKING: '1',
  SKIP_PITCH: '1',
  CONF_THRESHOLD: '0.5',
  MAX_DETECTIONS: '80',
  TIME_BUDGET_S: '2.0',
  START_BUDGET_AFTER_FIRST_FRAME: '1',
  EARLY_FLUSH_FIRST_FRAME: '1',
  USE_NVDEC: '1',
};

// Where strangers may ask, only this machine is listened to, unless HOST says otherwise.
const off = (name) => /^(0|false|no|off)$/i.test(process.env[name] || '');
const host = process.env.HOST || (off('VERIFY_ENABLED') || off('BLACKLIST_ENABLED') ? '127.0.0.1' : '0.0.0.0');

module.exports = {
  apps: [{
    name: 'sn44-miner',
    script: 'uvicorn',
    args: `main:app --host ${host} --port ${process.env.PORT || 7999}`,
    cwd: __dirname,
    interpreter: 'none', // uvicorn is a Python script; without this PM2 hands it to node
    kill_timeout: 10000, // SIGINT first: let the running challenge be answered
    env: process.env.PROFILE ? { PROFILE: process.env.PROFILE } : guide,
  }],
};
